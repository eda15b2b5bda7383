"""The rows of the comparison: what is trained, and how the trained autoregressive prior is drawn from otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from unclip.diffusion.prediction import Prediction
from unclip.diffusion.process import ProcessConfig


@dataclass(frozen=True)
class Row:
    label: str
    """Its name in the table."""
    part: str
    """The part that is trained; "" for none."""
    kind: str = ""
    change: Callable[[Any], Any] = lambda run: run
    """Changes the options of a preset."""
    refit: Callable[[Any], None] = lambda model: None
    """Changes what was fitted to the data before the training."""


def on_straight_path(run: Any, prediction: Prediction = "velocity") -> Any:
    process = ProcessConfig(process="straight", prediction=prediction)
    return replace(run, model=replace(run.model, diffusion=process))


def with_velocity(run: Any) -> Any:
    return replace(run, model=replace(run.model, diffusion=replace(run.model.diffusion, prediction="v")))


def with_log_normal_levels(run: Any) -> Any:
    return replace(run, log_sigma=(-0.8, 1.4))  # the decoder's


def without_hidden_tokens(run: Any) -> Any:
    return replace(run, hide_tokens=False)


def larger(run: Any) -> Any:
    return replace(run, model=replace(run.model, network=replace(run.model.network, width=192, layers=6, heads=6)))


def without_regression(model: Any) -> None:
    nn.init.zeros_(model.network.regression.weight)
    nn.init.zeros_(model.network.regression.bias)


ROWS = {
    "diffusion": Row("diffusion", "prior", "diffusion"),
    "straight": Row("straight path, the same network", "prior", "diffusion", on_straight_path),
    "mlp": Row("diffusion, residual MLP", "prior", "mlp"),
    "one_pass": Row("one pass", "prior", "one_pass"),
    "autoregressive": Row("autoregressive", "prior", "autoregressive"),
    "text_embedding": Row("text embedding as it is", ""),
    "text_decoder": Row("decoder trained on text embeddings", "decoder", "text"),
}

ABLATIONS = {
    "straight_x0": Row("straight, predicting x0", "prior", "diffusion", partial(on_straight_path, prediction="x0")),
    "velocity": Row("diffusion, predicting v", "prior", "diffusion", with_velocity),
    "log_normal": Row("diffusion, log-normal noise levels", "prior", "diffusion", with_log_normal_levels),
    "whole_captions": Row("diffusion, no hidden tokens", "prior", "diffusion", without_hidden_tokens),
    "no_regression": Row("diffusion, no linear prediction", "prior", "diffusion", refit=without_regression),
    "larger": Row("diffusion, a larger network", "prior", "diffusion", larger),
}
"""Rows in which one thing is changed in the diffusion prior."""
ALL_ROWS = ROWS | ABLATIONS

VARIANTS: dict[str, dict[str, float]] = {
    "bucket means": {},
    "top 50% of dot products": {"top_share": 0.5},
    "top 30%": {"top_share": 0.3},
    "top 15%": {"top_share": 0.15},
    "top 5%": {"top_share": 0.05},
    "temperature 0.9": {"temperature": 0.9},
    "guidance 1.5": {"guidance": 1.5},
}
"""Ways to draw from the autoregressive prior: name -> settings. "bucket means" changes how it decodes buckets."""

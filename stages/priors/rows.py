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
    after_fit: Callable[[Any], None] = lambda model: None
    """Changes the model once its statistics are fitted to the data, before it is trained."""


def with_uniform_times(run: Any) -> Any:
    return replace(run, log_sigma=None)


def with_whitening(run: Any, power: float | None) -> Any:
    return replace(run, whitening=power)


def on_straight_path(run: Any, prediction: Prediction) -> Any:
    process = ProcessConfig(process="straight", prediction=prediction)
    return replace(run, model=replace(run.model, diffusion=process))


def as_rectified_flow(run: Any) -> Any:
    """The straight path as Liu et al. 2022 (arXiv 2209.03003) train it: on the velocity, at uniform times."""
    return with_uniform_times(on_straight_path(run, "velocity"))


def predicting_v(run: Any) -> Any:
    return replace(run, model=replace(run.model, diffusion=replace(run.model.diffusion, prediction="v")))


def without_hidden_tokens(run: Any) -> Any:
    return replace(run, hide_tokens=False)


def with_larger_network(run: Any) -> Any:
    network = run.model.network
    sizes = {name: 3 * getattr(network, name) // 2 for name in ("width", "layers", "heads")}
    return replace(run, model=replace(run.model, network=replace(network, **sizes)))


def without_regression(model: Any) -> None:
    nn.init.zeros_(model.network.regression.weight)
    nn.init.zeros_(model.network.regression.bias)


ROWS = {
    "diffusion": Row("diffusion", "prior", "diffusion"),
    "straight": Row("straight path, the same network", "prior", "diffusion", as_rectified_flow),
    "mlp": Row("diffusion, residual MLP", "prior", "mlp"),
    "one_pass": Row("one pass", "prior", "one_pass"),
    "autoregressive": Row("autoregressive", "prior", "autoregressive"),
    "text_embedding": Row("text embedding as it is", ""),
    "text_decoder": Row("decoder trained on text embeddings", "decoder", "text"),
}

ABLATIONS = {
    "straight_x0": Row("straight, predicting x0", "prior", "diffusion", partial(on_straight_path, prediction="x0")),
    "v": Row("diffusion, predicting v", "prior", "diffusion", predicting_v),
    "uniform": Row("diffusion, uniform times", "prior", "diffusion", with_uniform_times),
    "by_coordinate": Row("diffusion, CLIP's coordinates", "prior", "diffusion", partial(with_whitening, power=None)),
    "whitened": Row("diffusion, fully whitened", "prior", "diffusion", partial(with_whitening, power=1.0)),
    "whole_captions": Row("diffusion, no hidden tokens", "prior", "diffusion", without_hidden_tokens),
    "no_regression": Row("diffusion, no linear prediction", "prior", "diffusion", after_fit=without_regression),
    "larger": Row("diffusion, a larger network", "prior", "diffusion", with_larger_network),
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

"""The rows of the comparison: what is trained, and how the trained autoregressive prior is drawn from otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

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


def on_straight_path(run: Any) -> Any:
    process = ProcessConfig(process="straight", prediction="velocity")
    return replace(run, model=replace(run.model, diffusion=process))


ROWS = {
    "diffusion": Row("diffusion", "prior", "diffusion"),
    "straight": Row("straight path, the same network", "prior", "diffusion", on_straight_path),
    "mlp": Row("diffusion, residual MLP", "prior", "mlp"),
    "one_pass": Row("one pass", "prior", "one_pass"),
    "autoregressive": Row("autoregressive", "prior", "autoregressive"),
    "text_embedding": Row("text embedding as it is", ""),
    "text_decoder": Row("decoder trained on text embeddings", "decoder", "text"),
}

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

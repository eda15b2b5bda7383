"""The options that the trainings of all parts share, and the sizes that a model takes from its data."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from stages.data_config import DataConfig
from stages.loop import TrainConfig
from unclip.errors import UserError
from unclip.fields import bounded


@dataclass(frozen=True)
class PartRun:
    out: Path = bounded(Path("checkpoints/run"), affects_weights=False)
    """Folder of the pipeline; the part goes to its subfolder of the part's name."""
    kind: str = bounded("", affects_weights=False)
    """Kind of the part, of those in unclip/registry.py."""
    preset: str = bounded("quick", affects_weights=False)
    """Defaults of all other options: tiny (tests), quick (a laptop), small (hours), base (a GPU), paper (a cluster)."""
    init_from: Path | None = bounded(None, affects_weights=False)
    """Start from the weights of the pipeline in this folder; shapes must be equal. Without it: at random."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def image_scale(self) -> int:
        """Height and width of the images to train on, over those that the pipeline's decoder draws."""
        return 1

    def for_pipeline(self) -> Self:
        """The same options, completed by what the pipeline in `out` says. Raises UserError where they contradict it."""
        return self


@dataclass(frozen=True)
class FrozenCLIPRun(PartRun):
    """Options of a part that is trained on a frozen CLIP: all but CLIP itself."""

    clip: str | None = bounded(None, affects_weights=False)
    """A pretrained CLIP to train on: a folder, a file, or its name on the Hugging Face Hub. It is copied into --out."""
    clip_revision: Annotated[str | None, tyro.conf.arg(name="clip.revision")] = bounded(None, affects_weights=False)
    """The Hub's branch, tag or commit of that CLIP."""

    def __post_init__(self):
        if self.clip_revision is not None and self.clip is None:
            raise UserError("--clip.revision is a revision of the CLIP that --clip names; give --clip OWNER/NAME too")


def guidance_conflicts(run: Any, *drops: str) -> Iterator[tuple[str, str]]:
    """Conflicts of a run whose sampling is guided: each condition has to be dropped, so that its null is learned."""
    if run.sampling.guidance != 1:
        for drop in drops:
            if not getattr(run, drop):
                yield drop, "be above 0 for guidance, which compares with draws without it (or --sampling.guidance 1)"


def noise_level_conflicts(run: Any) -> Iterator[tuple[str, str]]:
    """Conflicts of a run that draws noise levels from a log-normal distribution."""
    if run.log_sigma and run.log_sigma[1] <= 0:
        yield "log_sigma", "be a mean and a deviation above 0"


@dataclass(frozen=True)
class Shapes:
    """Sizes that a model takes from the data and from the frozen CLIP. The defaults stand for unknown ones."""

    image_size: int = 28
    channels: int = 1
    vocab_size: int = 1024
    """Entries of the tokenizer."""
    eos_id: int = 1
    """The end-of-text token."""
    embed_dim: int = 64
    """Dimension of CLIP's embeddings."""
    text_width: int = 64
    """Width of CLIP's token features."""
    context: int = 32
    """CLIP's longest caption in tokens."""
    num_classes: int = 0
    """Classes of the data whose captions differ."""
    decoder: dict[str, Any] | None = None
    """The config of the pipeline's decoder, for a part that is trained on it."""

"""Which data to train on."""

from dataclasses import dataclass
from pathlib import Path

from data import fashion_mnist
from data.dataset import CaptionedImages
from stages.runtime import main_first
from unclip.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    root: Path | None = None
    """Folder with the files of Fashion-MNIST; without it they are downloaded to data/raw."""
    limit: int | None = None
    """Use only the first so many training images, and at most as many for validation and test."""

    def load(self) -> tuple[CaptionedImages, CaptionedImages]:
        """The training and the validation data."""
        return self.split("train"), self.split("validation")

    def split(self, name: str, held_out: bool = False) -> CaptionedImages:
        """One split; with `held_out` also the training images that the three stages are not shown."""
        if self.limit is not None and self.limit < 10:
            raise UserError(f"--data.limit must be at least 10, for the preview grids, not {self.limit}")
        with main_first():
            return fashion_mnist.load(name, self.root, held_out).first(self.limit)

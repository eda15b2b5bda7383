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
    """Use only the first so many training images, and at most as many for validation."""

    def load(self) -> tuple[CaptionedImages, CaptionedImages]:
        """The training and the validation data."""
        if self.limit is not None and self.limit < 10:
            raise UserError(f"--data.limit must be at least 10, for the preview grids, not {self.limit}")
        with main_first():
            train, validation = (fashion_mnist.load(split, self.root) for split in ("train", "validation"))
        return train.first(self.limit), validation.first(self.limit)

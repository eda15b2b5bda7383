"""Which data to train on."""

from dataclasses import dataclass

from data.dataset import CaptionedImages
from data.sources import SourceConfig, load
from stages.runtime import main_first


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    def load(self, *splits: str, held_out: bool = False) -> list[CaptionedImages]:
        """The splits, as `data.sources.load` gives them; one rank fetches and decodes what the others then find."""
        with main_first():
            return load(self, splits, held_out)

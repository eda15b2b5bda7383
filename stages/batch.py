"""What a training step is given."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from unclip.clip import EncodedCaptions
from unclip.rows import Rows


@dataclass(frozen=True)
class Batch(Rows):
    """Examples, row by row, with all that is random in a step."""

    def share(self, rank: int, ranks: int) -> Self:
        """One rank's part of the examples."""
        return self[rank::ranks]


@dataclass(frozen=True)
class PriorBatch(Batch):
    embeddings: Tensor
    """Unit image embeddings (B, D)."""
    captions: EncodedCaptions
    t: Tensor
    """Times (B,)."""
    noise: Tensor
    """(B, D)."""


@dataclass(frozen=True)
class DecoderBatch(Batch):
    pixels: Tensor
    """uint8 (B, C, H, W)."""
    embeddings: Tensor
    """Their unit image embeddings (B, D)."""
    drop: Tensor
    """(B,), True where the embedding is dropped."""
    captions: EncodedCaptions
    t: Tensor
    """Times (B,)."""
    noise: Tensor
    """(B, C, H, W)."""


@dataclass(frozen=True)
class CLIPBatch(Batch):
    images: Tensor
    """Normalised (B, C, H, W)."""
    caption: Tensor
    """(B,), which row of `ids` each image's caption is."""
    ids: Tensor
    """The distinct captions (U, L), tokenised."""

    def share(self, rank: int, ranks: int) -> Self:
        """One rank's images, with their captions: each rank contrasts its own share."""
        distinct, caption = self.caption[rank::ranks].unique(return_inverse=True)
        return type(self)(self.images[rank::ranks], caption, self.ids[distinct])

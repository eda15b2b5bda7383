"""What all are timed on: one shape, and made-up examples of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.dataset import batch_generator
from data.fashion_mnist_captions import CLASSES, Grammar, GrammarCaptions
from unclip.clip import TextFeatures, Tokenizer


@dataclass(frozen=True)
class Shapes:
    """The sizes of preset base, which are the tutorial's, on images of 32 pixels."""

    image_size: int = 32
    patch_size: int = 4
    width: int = 256
    """Of the transformers, of CLIP's embeddings and of the UNet's condition."""
    layers: int = 6
    heads: int = 8
    vocab_size: int = 1024
    context: int = 64
    """Tokens that a caption is padded to by those who pad."""
    tokens: int = 10
    """Tokens of a caption of usual length."""
    channels: int = 32
    """Of the UNet's finest level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 2
    batch: int = 128
    """Images per training step of CLIP and of the prior."""
    decoder_batch: int = 32
    """Images per training step of the decoder, and per guided step."""
    samples: int = 8
    """Images that are drawn at once."""


class Inputs:
    """Random pixels, embeddings and encodings, and Fashion-MNIST's own captions of random classes."""

    def __init__(self, shapes: Shapes):
        self.shapes, self.generator = shapes, batch_generator(0, 0)
        self.embeddings = F.normalize(self.normal(shapes.batch, shapes.width), dim=-1)
        self.text = F.normalize(self.normal(shapes.batch, shapes.width), dim=-1)
        self.encodings = self.normal(shapes.batch, shapes.context, shapes.width)
        self.t = torch.randint(1000, (shapes.batch,), generator=self.generator)
        self.noise = self.normal(shapes.batch, shapes.width)
        size = (1, shapes.image_size, shapes.image_size)
        self.pixels = torch.randint(256, (shapes.batch, *size), generator=self.generator).byte()
        self.pixel_noise = self.normal(shapes.batch, *size)
        full = (shapes.batch, shapes.context)
        self.distinct = torch.randint(1, self.end_id, full, generator=self.generator)
        self.distinct[:, -1] = self.end_id
        self.caption, self.ids = self._fashion_mnist()

    @property
    def end_id(self) -> int:
        """The end-of-text token: the highest, as open_clip reads the embedding off there."""
        return self.shapes.vocab_size - 1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def captions(self, count: int, tokens: int) -> TextFeatures:
        """`count` captions of so many tokens each, as a CLIP would encode them."""
        mask = torch.ones(count, tokens, dtype=torch.bool)
        empty = torch.zeros(count, dtype=torch.bool)
        return TextFeatures(self.text[:count], self.encodings[:count, :tokens], mask, empty)

    def _fashion_mnist(self) -> tuple[Tensor, Tensor]:
        """A batch's captions as CLIP's training draws them: which of the distinct ones is each image's (B,), and those
        tokenised (U, L)."""
        labels = torch.randint(len(CLASSES), (self.shapes.batch,), generator=self.generator)
        codes = torch.randint(3, (self.shapes.batch, 2), generator=self.generator)
        captioner = GrammarCaptions(Grammar.build(), labels, codes)
        tokenizer = Tokenizer.train(captioner.captions, self.shapes.vocab_size)
        drawn = captioner.draw(torch.arange(self.shapes.batch), self.generator, one_phrasing=True)
        distinct, caption = drawn.unique(return_inverse=True)
        ids = tokenizer.encode([captioner.captions[i] for i in distinct], self.shapes.context)
        return caption, ids.clamp(max=self.end_id - 1).masked_fill(ids == tokenizer.end_id, self.end_id)

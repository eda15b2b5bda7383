"""The work that all contenders are timed on: one set of sizes, and made-up examples of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.fashion_mnist_captions import CLASSES, Grammar, GrammarCaptions
from data.shuffling import batch_generator
from unclip.clip import TextFeatures, Tokenizer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shapes:
    """The sizes of preset base, which are the tutorials', on images of 32 pixels."""

    image_size: int = 32
    patch_size: int = 4
    width: int = 256
    """Width of the transformers, of CLIP's embeddings and of the UNet's condition."""
    layers: int = 6
    heads: int = 8
    vocab_size: int = 1024
    context: int = 64
    """Tokens that captions are padded to by code that pads."""
    tokens: int = 10
    """Tokens of a caption of usual length."""
    channels: int = 32
    """Channels of the UNet's finest level."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 2
    batch: int = 128
    """Images per training step of CLIP and of the prior."""
    decoder_batch: int = 32
    """Images per training step of the decoder, and per guided step."""
    samples: int = 8
    """Images that are sampled at once."""


class Inputs:
    """Random pixels, embeddings and token features, and Fashion-MNIST's captions of random classes."""

    def __init__(self, shapes: Shapes, device: torch.device = CPU):
        self.shapes = shapes
        self.device = device
        self.generator = batch_generator(0, 0)
        pixel_shape = (1, shapes.image_size, shapes.image_size)
        token_shape = (shapes.batch, shapes.context)
        self.embeddings = F.normalize(self.draw_normal(shapes.batch, shapes.width), dim=-1)
        """Unit image embeddings (B, D)."""
        self.text_embeddings = F.normalize(self.draw_normal(shapes.batch, shapes.width), dim=-1)
        """Unit text embeddings (B, D)."""
        self.tokens = self.draw_normal(*token_shape, shapes.width)
        """Token features of captions of full length (B, context, W)."""
        self.t = torch.randint(1000, (shapes.batch,), generator=self.generator)
        self.noise = self.draw_normal(shapes.batch, shapes.width)
        self.pixels = torch.randint(256, (shapes.batch, *pixel_shape), generator=self.generator).byte()
        """uint8 (B, 1, H, W)."""
        self.pixel_noise = self.draw_normal(shapes.batch, *pixel_shape)
        self.full_token_ids = torch.randint(1, self.end_id, token_shape, generator=self.generator)
        """Token ids (B, context): a caption of full length for each image, all different."""
        self.full_token_ids[:, -1] = self.end_id
        self.caption_rows, self.token_ids = self._fashion_mnist_captions()
        for name, value in list(vars(self).items()):  # all were drawn on the CPU
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    @property
    def end_id(self) -> int:
        """The end-of-text token: the highest, as open_clip takes the embedding from there."""
        return self.shapes.vocab_size - 1

    def draw_normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def text_features(self, count: int, tokens: int) -> TextFeatures:
        """Return the features of `count` captions of `tokens` tokens each, as a CLIP would encode them."""
        return TextFeatures(
            embedding=self.text_embeddings[:count],
            tokens=self.tokens[:count, :tokens],
            mask=torch.ones(count, tokens, dtype=torch.bool, device=self.device),
            empty=torch.zeros(count, dtype=torch.bool, device=self.device),
        )

    def _fashion_mnist_captions(self) -> tuple[Tensor, Tensor]:
        """Draw the captions of a batch as CLIP's training does.

        Returns for each image the row of its caption (B,), and the token ids of the distinct captions (U, L).
        """
        labels = torch.randint(len(CLASSES), (self.shapes.batch,), generator=self.generator)
        codes = torch.randint(3, (self.shapes.batch, 2), generator=self.generator)
        captioner = GrammarCaptions(Grammar.build(), labels, codes)
        tokenizer = Tokenizer.train(captioner.captions, self.shapes.vocab_size)
        caption_ids = captioner.draw(torch.arange(self.shapes.batch), self.generator, one_phrasing=True)
        distinct, caption_rows = caption_ids.unique(return_inverse=True)
        captions = [captioner.captions[caption_id] for caption_id in distinct]
        token_ids = tokenizer.encode(captions, self.shapes.context)
        is_end = token_ids == tokenizer.end_id
        return caption_rows, token_ids.clamp(max=self.end_id - 1).masked_fill(is_end, self.end_id)

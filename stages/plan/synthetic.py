"""Made-up inputs of training, of the right shapes, for counting: a few images, each with a caption of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.dataset import CaptionedImages, ListedCaptions
from stages.embed import EmbeddedImages
from stages.inputs import CLIPInputs, Inputs
from unclip.clip import CLIPConfig

COUNT = 16
"""Images; more than the largest batch that is counted."""


class SyntheticTokenizer:
    """Stands for a tokenizer with so many entries, for captions that all have the same number of tokens."""

    start_id = 0
    end_id = 1
    pad_id = 1

    def __init__(self, vocab_size: int, tokens: int = 0):
        self.vocab_size = vocab_size
        self.tokens = tokens
        """Tokens of a caption; 0 for as many as the text tower reads."""

    def encode(self, captions: Sequence[str], context: int) -> Tensor:
        """Token ids (N, L) of N captions that are as long as asked for, but at most `context`."""
        token_ids = torch.full((len(captions), min(self.tokens or context, context)), self.end_id + 1)
        token_ids[:, 0] = self.start_id
        token_ids[:, -1] = self.end_id
        return token_ids

    def to_json(self) -> str:
        return "{}"


def make_images(size: int, channels: int) -> CaptionedImages:
    """Black images with a caption each."""
    captions = [f"caption {number}" for number in range(COUNT)]
    captioner = ListedCaptions(captions, torch.arange(COUNT)[:, None], torch.ones(COUNT, dtype=torch.long))
    return CaptionedImages("synthetic", torch.zeros(COUNT, channels, size, size, dtype=torch.uint8), captioner)


def make_clip_inputs(size: int, channels: int, vocab_size: int, tokens: int = 0) -> CLIPInputs:
    """Inputs of CLIP: images of that size, and captions of so many tokens; 0 for as many as the text tower reads."""
    images = make_images(size, channels)
    return CLIPInputs(images, images, SyntheticTokenizer(vocab_size, tokens), provenance={})


def make_inputs(clip: CLIPConfig, size: int, channels: int, tokens: int) -> Inputs:
    """Inputs of a part that is trained on a frozen CLIP of that config."""
    images = EmbeddedImages(
        data=make_images(size, channels),
        embeddings=torch.full((COUNT, clip.embed_dim), clip.embed_dim**-0.5),
        text_embeddings=torch.full((COUNT, clip.embed_dim), clip.embed_dim**-0.5),
        tokens=torch.zeros(COUNT * tokens, clip.text.width),
        token_starts=tokens * torch.arange(COUNT + 1),
    )
    return Inputs(
        clip=clip,
        clip_sha256="0" * 64,
        logit_scale=100.0,
        class_embeddings=torch.zeros(0, clip.embed_dim),
        provenance={},
        train=images,
        validation=images,
        files={},
    )

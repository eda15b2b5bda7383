"""The networks of a pipeline as modules whose inputs and outputs are plain tensors, as ONNX needs them.

Where one part is computed once per caption and another at every step, they are two networks: the prior's prefix and its
step, the decoder's condition and its step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unclip.clip import CLIP, Preprocess
from unclip.decoder.condition import Condition
from unclip.decoder.diffusion_decoder import DiffusionDecoder
from unclip.errors import UserError
from unclip.prior.diffusion_prior import DiffusionPrior
from unclip.prior.model import Prefix
from unclip.upsampler import DiffusionUpsampler

ROWS = 3
"""Rows of the examples that networks are traced with; any number but 1, which would be taken for fixed."""


@dataclass
class ExportedNetwork:
    """A network, and an example of its inputs. The first dimension of all is the batch, which stays open."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def example(*shape: int) -> Tensor:
    """Numbers (ROWS, *shape) to trace a network with."""
    return torch.rand(ROWS, *shape, dtype=torch.float32, device="cpu")


class TextTower(nn.Module):
    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, context) -> unit embeddings (B, D), token features (B, context, W), mask (B, context)."""
        embedding, tokens = self.clip.encode_text(token_ids)
        return embedding, tokens, self.clip.text.mask(token_ids)


class ImageTower(nn.Module):
    def __init__(self, clip: CLIP, preprocess: Preprocess):
        super().__init__()
        self.clip = clip
        self.preprocess = preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0 .. 255 in float (B, C, H, W) of the decoder's size -> unit embeddings (B, D)."""
        return self.clip.encode_image(self.preprocess(pixels))


class PriorPrefix(nn.Module):
    def __init__(self, prior: DiffusionPrior):
        super().__init__()
        self.prior = prior

    def forward(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, ...]:
        """A caption's features -> mask (B, L + 1), centre (B, D), keys and values (B, layers, heads, L + 1, d)."""
        prefix = self.prior.network.prefix(embedding, tokens, mask, empty)
        keys = torch.stack([keys for keys, _ in prefix.past], dim=1)
        values = torch.stack([values for _, values in prefix.past], dim=1)
        return prefix.mask, prefix.centre, keys, values


class PriorStep(nn.Module):
    def __init__(self, prior: DiffusionPrior):
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, time: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Noised residuals (B, D) at times (B,), and a prefix -> prediction (B, D)."""
        past = list(zip(keys.unbind(dim=1), values.unbind(dim=1), strict=True))
        return self.prior.network(x, time, Prefix(past, mask, x))


class DecoderCondition(nn.Module):
    def __init__(self, decoder: DiffusionDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self, embeddings: Tensor, drop: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings (B, D), (B,) True to drop them, a caption's features -> vector, tokens, mask."""
        condition = self.decoder.network.condition(embeddings, drop, tokens, mask, empty)
        return condition.vector, condition.tokens, condition.mask


class DecoderStep(nn.Module):
    def __init__(self, decoder: DiffusionDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, time: Tensor, vector: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Noised images (B, C, H, W) at times (B,), and a condition -> prediction (B, C, H, W)."""
        return self.decoder.network(x, time, Condition(vector, tokens, mask))


class UpsamplerStep(nn.Module):
    def __init__(self, upsampler: DiffusionUpsampler):
        super().__init__()
        self.upsampler = upsampler

    def forward(self, x: Tensor, time: Tensor, enlarged: Tensor, augmentation: Tensor, embeddings: Tensor) -> Tensor:
        """Noised large images (B, C, H, W) at times (B,), beside the enlarged ones -> prediction (B, C, H, W)."""
        return self.upsampler.network(x, time, enlarged, augmentation, embeddings)


def clip_networks(pipe: Any) -> dict[str, ExportedNetwork]:
    channels, height, width = pipe.decoder.image_shape
    text = pipe.clip.config.text
    token_ids = torch.full((ROWS, text.context), text.eos_id, dtype=torch.long, device="cpu")
    token_ids[:, 0] = 0
    pixels = 255 * example(channels, height, width)
    return {
        "text": ExportedNetwork(TextTower(pipe.clip), {"token_ids": token_ids}, ("embedding", "tokens", "mask")),
        "image": ExportedNetwork(ImageTower(pipe.clip, pipe.preprocess), {"pixels": pixels}, ("embedding",)),
    }


def caption_features(pipe: Any) -> dict[str, Tensor]:
    """An example of the features of captions, padded to the longest that CLIP reads."""
    text = pipe.clip.config.text
    return {
        "tokens": example(text.context, text.width),
        "mask": torch.arange(text.context, device="cpu").expand(ROWS, -1) < text.context - 1,
        "empty": torch.zeros(ROWS, dtype=torch.bool, device="cpu"),
    }


def prior_networks(pipe: Any) -> dict[str, ExportedNetwork]:
    network = pipe.prior.network
    dim = network.config.embed_dim
    features = caption_features(pipe)
    prefix = PriorPrefix(pipe.prior)
    inputs = {"embedding": example(dim), **features}
    with torch.no_grad():
        mask, _, keys, values = prefix(*inputs.values())
    step = {"x": example(dim), "time": example(), "mask": mask, "keys": keys, "values": values}
    return {
        "prior_prefix": ExportedNetwork(prefix, inputs, ("mask", "centre", "keys", "values")),
        "prior_step": ExportedNetwork(PriorStep(pipe.prior), step, ("output",)),
    }


def decoder_networks(pipe: Any, part: str = "decoder") -> dict[str, ExportedNetwork]:
    decoder = pipe.parts[part]
    inputs = {
        "embeddings": example(decoder.config.network.embed_dim),
        "drop": torch.zeros(ROWS, dtype=torch.bool, device="cpu"),
        **caption_features(pipe),
    }
    condition = DecoderCondition(decoder)
    with torch.no_grad():
        vector, tokens, mask = condition(*inputs.values())
    x = example(*decoder.image_shape)
    step = {"x": x, "time": example(), "vector": vector, "tokens": tokens, "mask": mask}
    return {
        f"{part}_condition": ExportedNetwork(condition, inputs, ("vector", "tokens", "mask")),
        f"{part}_step": ExportedNetwork(DecoderStep(decoder), step, ("output",)),
    }


def upsampler_networks(pipe: Any) -> dict[str, ExportedNetwork]:
    upsampler = pipe.parts["upsampler"]
    config = upsampler.config.network
    size = config.low_size * config.factor
    x = example(config.channels, size, size)
    step = {
        "x": x,
        "time": example(),
        "enlarged": example(*x.shape[1:]),
        "augmentation": example(),
        "embeddings": example(config.embed_dim),
    }
    return {"upsampler_step": ExportedNetwork(UpsamplerStep(upsampler), step, ("output",))}


EXPORTS: dict[tuple[str, str], Callable[[Any], dict[str, ExportedNetwork]]] = {
    ("clip", "transformer"): clip_networks,
    ("prior", "diffusion"): prior_networks,
    ("decoder", "diffusion"): decoder_networks,
    ("fast_decoder", "consistency"): lambda pipe: decoder_networks(pipe, "fast_decoder"),
}
"""The networks of a part by its name and kind. A further kind is exported by one more row."""


def networks_of(pipe: Any, kinds: dict[str, str]) -> dict[str, ExportedNetwork]:
    """All networks of a pipeline, given the kind of each part. Raises UserError for a kind that cannot be exported."""
    networks: dict[str, ExportedNetwork] = {}
    for part, kind in kinds.items():
        if (part, kind) not in EXPORTS:
            raise UserError(f"a {part} of kind {kind} cannot be exported to ONNX; export a pipeline without it")
        networks |= EXPORTS[part, kind](pipe)
    return networks

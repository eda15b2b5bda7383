"""The networks of a pipeline as modules whose inputs and outputs are plain tensors, as ONNX needs them.

Where one part is computed once per caption and another at every step, they are two networks: the prior's prefix and its
step, the decoder's condition and its step. All take all inputs that their kind of network may read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip import CLIP, Preprocess
from unclip.decoder.condition import Condition
from unclip.decoder.diffusion_decoder import DiffusionDecoder
from unclip.errors import UserError
from unclip.prior.mlp_model import ResidualMLP, TextCondition
from unclip.prior.model import Prefix, PriorTransformer
from unclip.upsampler import DiffusionUpsampler
from unclip.upsampler.resizing import resize

ROWS = 3
"""Rows of the examples that networks are traced with; any number but 1, which would be taken for fixed."""


@dataclass
class ExportedNetwork:
    """A network, and an example of its inputs. The first dimension of all is the batch, which stays open."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    weights: str
    """Name of the file that holds the weights. Networks of one part share it, and each weight is in it once."""


Networks = dict[str, ExportedNetwork]


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


class MatrixPreprocess(Preprocess):
    """The preprocessing of images of one size. It resizes by matrix products, as ONNX knows no such filters."""

    def __init__(self, preprocess: Preprocess, height: int, width: int):
        super().__init__(preprocess.size, preprocess.channels, preprocess.config, preprocess.fit)
        self.down, self.across = map(self._matrix, (height, width), self.resized_shape(height, width))

    def _matrix(self, length: int, new_length: int) -> Tensor:
        """(new_length, length): how each new row depends on the old ones."""
        rows = torch.eye(length, dtype=torch.float32, device="cpu")[None, None]
        resized = F.interpolate(rows, (new_length, length), mode=self.config.interpolation, antialias=True)
        return rows[0, 0] if length == new_length else resized[0, 0]

    def resize(self, x: Tensor) -> Tensor:
        """See `Preprocess.resize`."""
        if self.resized_shape(*x.shape[-2:]) == tuple(x.shape[-2:]):
            return x
        x = (x @ self.across.T).round().clamp(0, 255)
        return (self.down @ x).round().clamp(0, 255)


class ImageTower(nn.Module):
    def __init__(self, clip: CLIP, preprocess: Preprocess, height: int, width: int):
        super().__init__()
        self.clip = clip
        self.preprocess = MatrixPreprocess(preprocess, height, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0 .. 255 in float (B, C, H, W) of the decoder's size -> unit embeddings (B, D)."""
        return self.clip.encode_image(self.preprocess(pixels))


class TransformerPrefix(nn.Module):
    def __init__(self, network: PriorTransformer):
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, ...]:
        """A caption's features -> centre (B, D), mask (B, L + 1), keys and values (B, layers, heads, L + 1, d)."""
        prefix = self.network.prefix(embedding, tokens, mask, empty)
        keys = torch.stack([keys for keys, _ in prefix.past], dim=1)
        values = torch.stack([values for _, values in prefix.past], dim=1)
        return prefix.centre, prefix.mask, keys, values


class TransformerStep(nn.Module):
    def __init__(self, network: PriorTransformer):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Noised residuals (B, D) at times (B,), and a prefix -> prediction (B, D)."""
        past = list(zip(keys.unbind(dim=1), values.unbind(dim=1), strict=True))
        return self.network(x, time, Prefix(past, mask, x))


class MLPPrefix(nn.Module):
    def __init__(self, network: ResidualMLP):
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor, tokens: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """A caption's features -> centre (B, D), vector (B, W)."""
        condition = self.network.prefix(embedding, tokens, mask, empty)
        return condition.centre, condition.vector


class MLPStep(nn.Module):
    def __init__(self, network: ResidualMLP):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, vector: Tensor) -> Tensor:
        """Noised residuals (B, D) at times (B,), and a caption's vector -> prediction (B, D)."""
        return self.network(x, time, TextCondition(vector, x))


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
    """The upsampler's network for small images of one size. It enlarges them itself."""

    rows: Tensor

    def __init__(self, upsampler: DiffusionUpsampler, size: int):
        super().__init__()
        self.upsampler = upsampler
        columns = torch.eye(size, dtype=torch.float32, device="cpu")[None, None]
        self.register_buffer("rows", resize(columns, size * upsampler.config.network.factor, size)[0, 0])

    def forward(self, x: Tensor, time: Tensor, small: Tensor, augmentation: Tensor, embeddings: Tensor) -> Tensor:
        """Noised large images (B, C, H, W) at times (B,), beside the small ones -> prediction (B, C, H, W)."""
        enlarged = self.rows @ small @ self.rows.T  # resizing is linear
        return self.upsampler.network(x, time, enlarged, augmentation, embeddings)


def clip_networks(pipe: Any) -> Networks:
    channels, height, width = pipe.decoder.image_shape
    text = pipe.clip.config.text
    token_ids = torch.full((ROWS, text.context), text.eos_id, dtype=torch.long, device="cpu")
    token_ids[:, 0] = 0
    pixels = 255 * example(channels, height, width)
    return {
        "text": ExportedNetwork(
            TextTower(pipe.clip), {"token_ids": token_ids}, ("embedding", "tokens", "mask"), "text"
        ),
        "image": ExportedNetwork(
            ImageTower(pipe.clip, pipe.preprocess, height, width), {"pixels": pixels}, ("embedding",), "image"
        ),
    }


def caption_features(pipe: Any) -> dict[str, Tensor]:
    """An example of the features of captions, padded to the longest that CLIP reads."""
    text = pipe.clip.config.text
    return {
        "tokens": example(text.context, text.width),
        "mask": torch.arange(text.context, device="cpu").expand(ROWS, -1) < text.context - 1,
        "empty": torch.zeros(ROWS, dtype=torch.bool, device="cpu"),
    }


def prior_networks(pipe: Any, prefix: nn.Module, step: nn.Module, outputs: tuple[str, ...]) -> Networks:
    """The networks of a prior; the step reads what the prefix puts out beside the centre, by the same names."""
    dim = pipe.clip.config.embed_dim
    inputs = {"embedding": example(dim), **caption_features(pipe)}
    with torch.no_grad():
        read = dict(zip(outputs, prefix(*inputs.values()), strict=True))
    del read["centre"]
    step_inputs = {"x": example(dim), "time": example(), **read}
    return {
        "prior_prefix": ExportedNetwork(prefix, inputs, outputs, "prior"),
        "prior_step": ExportedNetwork(step, step_inputs, ("output",), "prior"),
    }


def transformer_prior_networks(pipe: Any) -> Networks:
    network = pipe.prior.network
    outputs = ("centre", "mask", "keys", "values")
    return prior_networks(pipe, TransformerPrefix(network), TransformerStep(network), outputs)


def mlp_prior_networks(pipe: Any) -> Networks:
    network = pipe.prior.network
    return prior_networks(pipe, MLPPrefix(network), MLPStep(network), ("centre", "vector"))


def decoder_networks(pipe: Any, part: str = "decoder") -> Networks:
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
        f"{part}_condition": ExportedNetwork(condition, inputs, ("vector", "tokens", "mask"), part),
        f"{part}_step": ExportedNetwork(DecoderStep(decoder), step, ("output",), part),
    }


def upsampler_networks(pipe: Any) -> Networks:
    upsampler = pipe.parts["upsampler"]
    channels, size, _ = pipe.decoder.image_shape
    large = size * upsampler.config.network.factor
    inputs = {
        "x": example(channels, large, large),
        "time": example(),
        "small": example(channels, size, size),
        "augmentation": example(),
        "embeddings": example(pipe.clip.config.embed_dim),
    }
    return {"upsampler_step": ExportedNetwork(UpsamplerStep(upsampler, size), inputs, ("output",), "upsampler")}


EXPORTS: dict[tuple[str, str], Callable[[Any], Networks]] = {
    ("clip", "transformer"): clip_networks,
    ("prior", "diffusion"): transformer_prior_networks,
    ("prior", "one_pass"): transformer_prior_networks,
    ("prior", "mlp"): mlp_prior_networks,
    ("decoder", "diffusion"): decoder_networks,
    ("decoder", "text"): decoder_networks,
    ("fast_decoder", "consistency"): partial(decoder_networks, part="fast_decoder"),
    ("upsampler", "diffusion"): upsampler_networks,
}
"""The networks of a part by its name and kind. A further kind is exported by one more row."""


def check_kinds(kinds: dict[str, str]) -> None:
    """Raise UserError for a part of a kind that cannot be exported, given the kind of each part."""
    for part, kind in kinds.items():
        if (part, kind) not in EXPORTS:
            exported = [other for name, other in EXPORTS if name == part]
            instead = f"one of kind {', '.join(exported)} can" if exported else "remove it from a copy of the pipeline"
            raise UserError(f"a {part} of kind {kind} cannot be exported to ONNX; {instead}")


def networks_of(pipe: Any, kinds: dict[str, str]) -> Networks:
    """All networks of a pipeline, given the kind of each part, which `check_kinds` has let pass."""
    networks: Networks = {}
    for part, kind in kinds.items():
        networks |= EXPORTS[part, kind](pipe)
    return networks

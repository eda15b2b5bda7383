"""What a model costs: parameters, operations, and what a training step keeps of an example, as formulas of its config.

They follow the modules line by line. No module is built and nothing is run; tests hold them to counts and measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from unclip.clip import CLIPConfig, TextConfig, VisionConfig
from unclip.decoder import DecoderConfig
from unclip.decoder.unet import attention_heads
from unclip.layers import FEW_KEYS
from unclip.prior import PriorConfig


@dataclass(frozen=True)
class Cost:
    """Of a piece of a network. All but the parameters are per example, and add up."""

    parameters: float = 0
    operations: float = 0
    """Floating-point operations of a forward pass: two for each product that is added up."""
    spared: float = 0
    """Of the backward pass, which takes twice as many otherwise: those of maps that are not trained."""
    wide: float = 0
    """Numbers kept for the backward pass in float32, whatever the precision."""
    narrow: float = 0
    """... in the type of the matrix products."""
    casts: float = 0
    """... in bfloat16 beside the same numbers in float32; no copies if all is float32."""
    plain: float = 0
    """... in float32 by plain products instead of a fused kernel, as attention to few keys is on a CPU."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def training(self) -> float:
        """Floating-point operations of a forward and a backward pass."""
        return 3 * self.operations - self.spared

    def kept(self, width: int) -> float:
        """Bytes kept of an example, where matrix products are of numbers of `width` bytes: 4, or 2."""
        return 4 * self.wide + width * self.narrow + (2 * self.casts if width == 2 else 4 * self.plain)


@dataclass(frozen=True)
class ModelCost:
    """A model as its blocks, each of which can be recomputed or gathered by itself, and all the rest."""

    blocks: Sequence[Cost]
    inputs: Sequence[float]
    """Numbers in float32 that each block reads of an example: what is kept of it if it is recomputed."""
    rest: Cost = field(default_factory=Cost)

    def __add__(self, other: "ModelCost") -> "ModelCost":
        return ModelCost([*self.blocks, *other.blocks], [*self.inputs, *other.inputs], self.rest + other.rest)

    @property
    def total(self) -> Cost:
        return total([*self.blocks, self.rest])


def total(costs: Sequence[Cost]) -> Cost:
    return reduce(add, costs, Cost())


def linear(places: float, inputs: int, outputs: int, bias: bool = True) -> Cost:
    """A linear map at so many places, or a convolution, whose inputs are those under its kernel."""
    return Cost(inputs * outputs + bias * outputs, 2 * places * inputs * outputs)


def norm(width: int) -> Cost:
    return Cost(2 * width)


def attention(width: int, heads: int, queries: float, keys: float, unkept: float = 0) -> Cost:
    """Scores and weighted sums: queries, keys and values are the caller's; it keeps its output.

    Plain products keep the probabilities as well, but not the logarithm of each sum, nor `unkept` numbers more.
    """
    plain = heads * queries * (keys - 1) - unkept if keys <= FEW_KEYS else 0
    return Cost(operations=4 * width * queries * keys, narrow=width * queries, plain=plain)


def block(
    tokens: int, width: int, heads: int, mlp_ratio: float = 4.0, activation: str = "gelu", out: int = 0, mask: int = 0
) -> Cost:
    """`unclip.layers.Block` on so many tokens, of which it puts out `out` (0: all).

    `mask` counts the numbers of a mask that is each example's own.
    """
    hidden, out = round(width * mlp_ratio), out or tokens
    products = [
        linear(out, width, width),  # queries
        linear(tokens, width, 2 * width),  # keys and values
        attention(width, heads, out, tokens, unkept=mask),
        linear(out, width, width),
        linear(out, width, hidden),
        linear(out, hidden, width),
    ]
    inner = {"gelu": 2, "quick_gelu": 3}[activation] * hidden  # before and after it, and the sigmoid
    kept = Cost(wide=width * (tokens + out), narrow=3 * width * tokens + (2 * width + inner) * out + mask)
    return total([*products, norm(width), norm(width), kept])


def transformer(
    layers: int, tokens: int, width: int, heads: int, own_mask: bool = False, one_out: bool = False, **options
) -> ModelCost:
    """So many blocks. With `one_out` the last puts out one token; `own_mask`: each example has one of its own."""
    all_out = block(tokens, width, heads, mask=own_mask * tokens**2, **options)
    last = block(tokens, width, heads, out=1, mask=own_mask * tokens, **options) if one_out else all_out
    return ModelCost([*[all_out] * (layers - 1), last][:layers], [tokens * width] * layers)


def patches(config: VisionConfig) -> int:
    """Of an image."""
    return (config.image_size // config.patch_size) ** 2


def vision(config: VisionConfig, embed_dim: int, kept: int | None = None) -> ModelCost:
    """The image tower, per image, of which the transformer sees so many patches; None for all."""
    places, pixels = patches(config), config.channels * config.patch_size**2
    tokens, width = (places if kept is None else kept) + 1, config.width
    rest = [
        linear(places, pixels, width, bias=False),
        norm(width),
        norm(width),
        linear(1, width, embed_dim, bias=False),
        Cost(parameters=(2 + places) * width),  # the class token and the positions
        Cost(wide=tokens * width, narrow=config.channels * config.image_size**2),  # what norm_pre and the patches read
    ]
    kind = {"heads": config.heads, "mlp_ratio": config.mlp_ratio, "activation": config.activation}
    return transformer(config.layers, tokens, width, one_out=True, **kind) + ModelCost([], [], total(rest))


def text(config: TextConfig, embed_dim: int, tokens: int) -> ModelCost:
    """The text tower, per caption of so many tokens."""
    width = config.width
    rest = [
        norm(width),
        linear(1, width, embed_dim, bias=False),
        Cost(parameters=(config.vocab_size + config.context) * width, wide=width),
    ]
    kind = {"heads": config.heads, "mlp_ratio": config.mlp_ratio, "activation": config.activation}
    return transformer(config.layers, tokens, width, one_out=True, **kind) + ModelCost([], [], total(rest))


def clip(config: CLIPConfig, tokens: int, kept: int | None = None) -> ModelCost:
    """Both towers, per pair of an image, seen by `kept` patches or all, and a caption of so many tokens, with the scale
    of the logits."""
    towers = vision(config.vision, config.embed_dim, kept) + text(config.text, config.embed_dim, tokens)
    return towers + ModelCost([], [], Cost(parameters=1))


def contrastive(images: float, captions: float) -> float:
    """Bytes that the contrastive loss keeps of so many images against so many captions: three tables and a mask."""
    return (4 * 3 + 1) * images * captions


def prior(config: PriorConfig, tokens: int) -> ModelCost:
    """The prior, per image with a caption of so many tokens, which text, time, image and query follow."""
    width, dim = config.width, config.embed_dim
    rest = [
        linear(tokens, config.text_width, width),
        linear(1, dim, width),
        linear(1, width, width),
        linear(1, width, width),
        linear(1, dim, width),
        norm(width),
        linear(1, width, dim),
        Cost(parameters=config.context * width + config.text_width + dim + width),  # positions, both nulls, the query
        Cost(operations=2 * dim**2, spared=4 * dim**2),  # the linear guess, which is not trained
        Cost(narrow=tokens * config.text_width),  # what encoding_in reads
    ]
    blocks = transformer(config.layers, tokens + 4, width, config.heads, own_mask=True, one_out=True)
    return blocks + ModelCost([], [], total(rest))


def res_block(pixels: float, channels: int, out: int, vector: int) -> Cost:
    """`unclip.decoder.blocks.ResBlock` on so many pixels."""
    parts = [
        linear(pixels, 9 * channels, out),
        linear(1, vector, 2 * out),
        linear(pixels, 9 * out, out),
        norm(channels),
        norm(out),
        Cost(wide=pixels * (2 * channels + 3 * out), narrow=pixels * (channels + out)),
    ]
    if channels != out:
        parts += [linear(pixels, channels, out), Cost(casts=pixels * channels)]
    return total(parts)


def conditioned_attention(pixels: float, channels: int, heads: int, condition: int, tokens: int) -> Cost:
    """`unclip.decoder.blocks.ConditionedAttention`; the keys and values are put together with the condition's."""
    return total([
        norm(channels),
        linear(pixels, channels, 3 * channels),
        linear(tokens, condition, 2 * channels),
        attention(channels, heads, pixels, tokens + pixels, unkept=2 * channels * pixels),  # keys and values, copied
        linear(pixels, channels, channels),
        Cost(wide=pixels * channels, casts=tokens * condition),
        Cost(narrow=channels * (4 * pixels + 2 * (tokens + pixels))),
    ])  # fmt: skip


def unet(config: DecoderConfig, tokens: int) -> ModelCost:
    """The UNet, per image with so many tokens of condition."""
    fold, multiple = config.space_to_depth, config.space_to_depth * 2 ** (len(config.multipliers) - 1)
    side = -(-config.image_size // multiple) * multiple // fold  # padded, folded
    widths = [config.width * m for m in config.multipliers]
    folded, channels, skips = config.channels * fold**2, widths[0], [widths[0]]
    blocks, inputs, rest = [], [], [linear(side**2, 9 * folded, channels), Cost(narrow=side**2 * folded)]

    def layer(read: int, out: int, attends: bool) -> None:
        pixels, heads = side**2, attention_heads(out, config.head_dim)
        attending = conditioned_attention(pixels, out, heads, config.condition_width, tokens) if attends else Cost()
        blocks.append(res_block(pixels, read, out, config.vector_width) + attending)
        inputs.append(side**2 * read)

    for level, width in enumerate(widths):
        for _ in range(config.blocks):
            layer(channels, width, level in config.attention_levels)
            channels = width
            skips.append(channels)
        if level < len(widths) - 1:
            rest.append(linear(side**2 / 4, 9 * channels, channels) + Cost(narrow=side**2 * channels))
            side //= 2
            skips.append(channels)
    layer(channels, channels, True)
    layer(channels, channels, False)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.blocks + 1):
            layer(channels + skips.pop(), width, level in config.attention_levels)
            channels = width
        if level > 0:
            doubled = linear(side**2, 16 * channels, channels).operations  # 4 x 4 transposed, of a kernel of 3 x 3
            weights = linear(0, 9 * channels, channels).parameters
            rest.append(Cost(weights, doubled, narrow=side**2 * channels))
            side *= 2
    last = Cost(wide=2 * side**2 * channels, narrow=side**2 * channels)
    rest += [norm(channels), linear(side**2, 9 * channels, folded), last]
    return ModelCost(blocks, inputs, total(rest))


def decoder(config: DecoderConfig, tokens: int) -> ModelCost:
    """The decoder, per image with a caption of so many tokens."""
    vector, width, dim = config.vector_width, config.condition_width, config.embed_dim
    conditions = [
        linear(1, dim, vector),
        linear(1, dim, config.image_tokens * width),
        linear(1, config.width, vector),
        linear(1, vector, vector),
        Cost(parameters=dim),  # the null embedding
    ]
    read = ModelCost([], [], total(conditions))
    if config.text:
        inputs = [
            linear(tokens, config.text_width, width),
            norm(width),
            Cost(parameters=width, wide=tokens * width, narrow=tokens * config.text_width),
        ]
        read += transformer(config.text_layers, tokens, width, config.text_heads) + ModelCost([], [], total(inputs))
    return read + unet(config, config.image_tokens + tokens * config.text)

"""The diffusion prior (Ramesh et al. 2022, section 2.2): caption -> CLIP image embedding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip.text_features import TextFeatures
from unclip.diffusion.gaussian import GaussianDiffusion, Schedule
from unclip.diffusion.samplers import PRIOR_STREAM, RowNoise, dpmpp, guided, spaced_timesteps
from unclip.fields import bounded, check, from_data
from unclip.layers import Block, EmbeddingScaler, KeyValue, causal_mask, init_transformer, timestep_embedding
from unclip.prior.reranking import Reranker
from unclip.settings import PriorSettings


@dataclass(frozen=True)
class PriorConfig:
    embed_dim: int = from_data(0, 0, 16_384)
    """Dimension of CLIP's embeddings."""
    text_width: int = from_data(0, 0, 16_384)
    """Width of CLIP's token encodings."""
    context: int = from_data(0, 0, 4096)
    """CLIP's longest caption in tokens."""
    width: int = bounded(128, 2, 16_384)
    """Width of the transformer."""
    layers: int = bounded(4, 1, 256)
    """Number of transformer blocks."""
    heads: int = bounded(4, 1, 256)
    """Attention heads; they divide the width."""
    timesteps: int = bounded(1000, 2, 10_000)
    """Diffusion steps of the training process."""
    schedule: Schedule = "cosine"
    """Noise schedule."""
    rivals: int = from_data(0, 0, 65_536)
    """Number of captions of the data's classes, beside which CLIP judges a draw; 0 where it has none."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.width % self.heads:
            yield "heads", f"divide the width {self.width}"


class Prefix(NamedTuple):
    """What the text contributes at every timestep: computed once, whatever the number of steps."""

    past: list[KeyValue]  # each layer's keys and values, both (B, heads, L + 1, W / heads)
    mask: Tensor  # (B, L + 1), False for padding
    centre: Tensor  # (B, D), the scaled image embedding that the text makes linearly likely

    def rows(self, rows: Tensor) -> "Prefix":
        """That of some of the captions, by their numbers, each as often as it is named."""
        return Prefix([(keys[rows], values[rows]) for keys, values in self.past], self.mask[rows], self.centre[rows])


class TextRegression(nn.Module):
    """The linear guess of the scaled image embedding from the text embedding, by ridge regression; not trained.

    CLIP's space is close to linear: "light" moves the images of most classes the same way. What this guess explains the
    transformer need not learn caption by caption, and a pair of words that it never saw still lands where it belongs.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim, dim))
        self.register_buffer("bias", torch.zeros(dim))

    def fit(self, text: Tensor, images: Tensor, ridge: float = 0.01) -> None:
        """Fit to unit text embeddings (N, D) and scaled image embeddings (N, D).

        `ridge` is added to the variance of the text embeddings' coordinates, in units of 1 / D, their size.
        """
        text, images = text.cpu().double(), images.cpu().double()  # not every device has float64
        x, y = text - text.mean(dim=0), images - images.mean(dim=0)
        covariance = x.T @ x / len(x) + ridge / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(covariance, x.T @ y / len(x)).T
        self.weight.copy_(weight)
        self.bias.copy_(images.mean(dim=0) - weight @ text.mean(dim=0))

    def forward(self, text: Tensor) -> Tensor:
        return F.linear(text, self.weight, self.bias)


class Prior(nn.Module):
    """A causal transformer over [token encodings, text embedding, timestep, noised image embedding, learned query].

    The output at the query, added to a linear guess from the text embedding, is the predicted image embedding, scaled
    to unit variance. As the text stands before the timestep under a causal mask, its keys and values do not depend on
    t.
    """

    config_class = PriorConfig
    of_data = "choice."
    """What is no weight but the data's: fine-tuning takes it of its own data."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        check(config)
        self.config = config
        width = config.width
        self.scaler = EmbeddingScaler(config.embed_dim)
        self.regression = TextRegression(config.embed_dim)
        self.choice = Reranker(config.embed_dim, config.rivals)
        self.register_buffer("signal", self.diffusion().alphas_cumprod.sqrt().float(), persistent=False)  # (T,)
        self.encoding_in = nn.Linear(config.text_width, width)
        self.positions = nn.Parameter(torch.empty(config.context, width))
        self.text_in = nn.Linear(config.embed_dim, width)
        self.null_encoding = nn.Parameter(torch.empty(config.text_width))
        self.null_text = nn.Parameter(torch.empty(config.embed_dim))
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.image_in = nn.Linear(config.embed_dim, width)
        self.query = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm_final = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.embed_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Zero output: an untrained prior predicts the linear guess."""
        for parameter in (self.positions, self.null_encoding, self.null_text, self.query):
            nn.init.normal_(parameter, std=0.02)
        init_transformer(self.blocks)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def diffusion(self) -> GaussianDiffusion:
        return GaussianDiffusion(self.config.timesteps, self.config.schedule, prediction="x0")

    def prefix(self, captions: TextFeatures) -> Prefix:
        """Read B captions; the empty ones become the learned null, and their linear guess the mean of all."""
        x, mask, centre = self._text(captions)
        look = self._look(mask)
        past = []
        for block in self.blocks:
            x, kv = block(x, look)
            past.append(kv)
        return Prefix(past, mask, centre)

    def _text(self, captions: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """The sequence's first part (B, L + 1, W), its mask (B, L + 1), and the linear guess (B, D)."""
        centre = self.regression(captions.embedding).masked_fill(captions.empty[:, None], 0)  # (B, D)
        unit_variance = captions.embedding * self.config.embed_dim**0.5
        captions = replace(captions, embedding=unit_variance).fill(self.null_encoding, self.null_text)
        x = self.encoding_in(captions.tokens) + self.positions[: captions.tokens.shape[1]]  # (B, L, W)
        x = torch.cat([x, self.text_in(captions.embedding)[:, None]], dim=1)  # (B, L + 1, W)
        return x, F.pad(captions.mask, (0, 1), value=True), centre

    def _end(self, noised: Tensor, t: Tensor, centre: Tensor) -> Tensor:
        """The sequence's second part, which depends on t: timestep, noised embedding, query (B, 3, W).

        The transformer sees and predicts the difference to the text's linear guess.
        """
        noised = noised - self.signal[t, None] * centre
        time = self.time_in(timestep_embedding(t, self.config.width).to(noised.dtype))  # (B, W)
        return torch.stack([time, self.image_in(noised), self.query.expand(len(t), -1).to(time.dtype)], dim=1)

    @staticmethod
    def _look(mask: Tensor) -> Tensor:
        """(B, 1, N, N), where each token of sequences with a mask (B, N) may look: at itself and before, no padding."""
        return (mask[:, None] & causal_mask(mask.shape[1], mask.device))[:, None]

    def forward(self, noised: Tensor, t: Tensor, prefix: Prefix) -> Tensor:
        """Noised, scaled image embeddings (B, D) at times t (B,) -> predicted clean ones (B, D), scaled."""
        x = self._end(noised, t, prefix.centre)  # (B, 3, W)
        before = prefix.mask[:, None].expand(-1, 3, -1)  # (B, 3, L + 1)
        after = causal_mask(3, x.device).expand(len(t), -1, -1)  # (B, 3, 3)
        look = torch.cat([before, after], dim=2)[:, None]  # (B, 1, 3, L + 4)
        for block, past in zip(self.blocks[:-1], prefix.past[:-1], strict=True):
            x, _ = block(x, look, past)  # (B, 3, W)
        x, _ = self.blocks[-1](x, look[:, :, 2:], prefix.past[-1], at=2)  # (B, 1, W)
        return prefix.centre + self.out(self.norm_final(x[:, 0]))  # (B, D)

    def predict(self, noised: Tensor, t: Tensor, captions: TextFeatures) -> Tensor:
        """forward(noised, t, prefix(captions)) in one pass, for training, where every caption meets one t only."""
        text, mask, centre = self._text(captions)
        x = torch.cat([text, self._end(noised, t, centre)], dim=1)  # (B, L + 4, W)
        look = self._look(F.pad(mask, (0, 3), value=True))  # (B, 1, L + 4, L + 4)
        for block in self.blocks[:-1]:
            x, _ = block(x, look)  # (B, L + 4, W)
        x, _ = self.blocks[-1](x, look[:, :, -1:], at=-1)  # (B, 1, W)
        return centre + self.out(self.norm_final(x[:, 0]))  # (B, D)

    @torch.inference_mode()
    def draw(self, captions: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        """One unit image embedding (N, D) for each of N captions, by diffusion; each depends on its own seed.

        Of `settings.num_candidates` candidates `Reranker` keeps one; of an empty caption's, the first
        is kept. All N x draws candidates are one batch.
        """
        diffusion, n = self.diffusion(), len(captions)
        timesteps = spaced_timesteps(diffusion.timesteps, settings.steps, "prior_steps")
        rows = torch.arange(n, device=captions.embedding.device).repeat(
            settings.num_candidates
        )  # all draws are one batch
        if settings.guidance == 1:
            model = partial(self, prefix=self.prefix(captions).rows(rows))
        else:  # N captions, then the N nulls that belong to them
            both = self.prefix(TextFeatures.cat([captions, captions.null()]))
            model = guided(partial(self, prefix=both.rows(torch.cat([rows, rows + n]))), settings.guidance)
        noise = [RowNoise(seeds, PRIOR_STREAM, draw)(captions.embedding) for draw in range(settings.num_candidates)]
        x = dpmpp(diffusion.denoiser(model), torch.cat(noise), diffusion, timesteps)
        candidates = self.scaler.unscale(x).unflatten(0, (-1, n)).transpose(0, 1)  # (N, draws, D)
        kept = self.choice(candidates, captions.embedding, settings.threshold).masked_fill(captions.empty, 0)
        return candidates[torch.arange(n, device=kept.device), kept]

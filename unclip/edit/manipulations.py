"""What an image embedding allows: vary, blend, change, mix, paint in, look inside. Plain functions over a pipeline.

    python -m unclip.edit vary shoe.png --n 8 --out outputs/vary
    python -m unclip.edit --help                                    # all commands

Ramesh et al. 2022, sections 3 and 4: an image is a pair of its CLIP embedding z, which says what matters in it, and the
noise x_T that the decoder, run backwards with z, finds for the rest.

Images are PIL images, files, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C), of any size, one or a list. Several
that are drawn come as an `Output`, the n of each image or caption in a row; the stages of a path come as uint8
(N, stages, H, W, C). A result depends on its own image, its seed and the settings alone. Settings are those of
`unclip.settings.SamplingOptions`. Every function raises UserError for what it cannot use.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.diffusion import RowNoise
from unclip.edit.image_inputs import OneImage, Pictures, is_single_image, prepare_images, prepare_mask
from unclip.errors import UserError
from unclip.images import to_float
from unclip.interfaces import CanInpaint, CanInvert, MapsText
from unclip.pipeline import Captions, Output, UnCLIP, as_array, batches, caption_list
from unclip.settings import MAX_SEED, PRIOR_OPTIONS, Sampling, seed_list

Space = Literal["image", "text"]

BACKWARDS = {"sampler": "ddim", "eta": 0.0, "spacing": "even", "guidance": 1.0, "steps": 50, "num_candidates": 1}
"""How edits draw that need an image's own noise: the one sampler that can be run backwards, at the times by which few
steps lead back closest to the image, unguided if not asked."""
PAINTING = {"sampler": "ddpm", "eta": 0.0, "guidance": 1.0, "steps": 25, "num_candidates": 1}
CANDIDATES, OWN = 16, 1 / 3
"""Of so many embeddings that the prior draws for a painting the one closest to the image's own is taken, and moved by
this share towards it, so that what is painted goes with what is not."""
DEFAULTS = {
    "vary": {},
    "blend": BACKWARDS,
    "change": BACKWARDS | {"guidance": 2.5},  # with less, what was asked for is not always reached
    "mix": {"prior_threshold": 1.0},  # of each prompt what is typical: the mean of unusual draws is seldom either
    "inpaint": PAINTING,
    "probe": {"num_candidates": 1},  # what is drawn of few components keeps to no image's embedding
    "corrupt": {},
}
"""What each kind of edit sets otherwise than the pipeline, where it is not told how to draw."""
LEAN = 0.5
"""How far the direction of a change leans towards what it leads to: more keeps the class in more images, and fewer show
the change."""
AXES_FROM = {"n": 512, "prior_num_candidates": 1, "prior_steps": 10, "prior_guidance": 1.0}
"""The unconditional draws of the prior that principal axes are taken from."""


@dataclass(frozen=True)
class Latent:
    """N images as the decoder's input, and how the decoder has to run to give them back."""

    embeddings: Tensor
    """Unit image embeddings (N, D): what CLIP sees in them."""
    noise: Tensor
    """(N, C, H, W): all the rest."""
    captions: tuple[str, ...] = ()
    """N captions that the decoder reads too; none where it reads none."""
    steps: int = 100
    """Of DDIM."""
    guidance: float = 1.0


# --- an image as embedding and noise ----------------------------------------------------------------------------------


@torch.inference_mode()
def invert(
    pipe: UnCLIP, images: Pictures, captions: Captions | None = None, steps: int = 100, guidance: float = 1.0
) -> Latent:
    """The embeddings and the noise of N images: DDIM run backwards, given the embeddings (section 3).

    Args:
        captions: N captions that the decoder is to read too; one for all, or None for none.
        steps: of DDIM, at least 2; `reconstruct` takes as many.
    """
    prepared = prepare_images(pipe, images)
    said = _captions(captions, len(prepared))
    embeddings, encoded = pipe.encode_image(prepared), pipe.encode_captions(said)
    pixels = to_float(torch.from_numpy(prepared).permute(0, 3, 1, 2)).to(pipe.device)
    sampling = _backwards(pipe, "invert", steps=steps, guidance=guidance)
    parts = batches(len(pixels), sampling.batch_size)
    _needs(pipe, "invert", CanInvert)
    noise = [pipe.decoder.invert_images(pixels[p], embeddings[p], encoded[p], sampling.decoder) for p in parts]
    return Latent(embeddings, torch.cat(noise), tuple(said) if captions is not None else (), steps, guidance)


def reconstruct(pipe: UnCLIP, latent: Latent) -> np.ndarray:
    """The images of a `Latent`, uint8 (N, H, W, C)."""
    return _redraw(pipe, latent, latent.embeddings[:, None], latent.noise[:, None])[:, 0]


def _redraw(pipe: UnCLIP, latent: Latent, embeddings: Tensor, noise: Tensor) -> np.ndarray:
    """uint8 (N, K, H, W, C) of embeddings (N, K, D) and noise (N, K, C, H, W), as the latent's own images."""
    count = embeddings.shape[1]
    captions = [caption for caption in latent.captions for _ in range(count)] or None
    settings = BACKWARDS | {"steps": latent.steps, "guidance": latent.guidance}
    flat = noise.expand(-1, count, -1, -1, -1).flatten(0, 1)
    images = pipe.decode(embeddings.flatten(0, 1), captions, seed=[0] * len(flat), noise=flat, **settings)
    return images.reshape(-1, count, *images.shape[1:])


def _backwards(pipe: UnCLIP, name: str, **settings: Any) -> Sampling:
    """The settings for what needs an image's own noise. Raises UserError for a sampler that cannot run backwards."""
    if others := set(settings) & {"style", "guidance_interval", "spacing", "num_candidates", *PRIOR_OPTIONS}:
        raise UserError(f"{name} takes steps and guidance; leave {min(others)} out")
    sampling = pipe.sampling.override(**BACKWARDS | settings)
    if sampling.decoder.sampler != "ddim" or sampling.decoder.eta:
        raise UserError(f"{name} runs the ddim sampler backwards, without noise; leave sampler and eta out")
    return sampling


def _needs(pipe: UnCLIP, ability: str, protocol: type) -> None:
    if not isinstance(pipe.decoder, protocol):
        raise UserError(f"the decoder of this pipeline cannot {ability}; use one of kind diffusion")


def _captions(captions: Captions | None, count: int) -> list[str]:
    """One caption per image; empty ones for None."""
    said = [""] if captions is None else caption_list(captions)
    if len(said) not in (1, count):
        raise UserError(f"{len(said)} captions do not go with {count} images; give one, or one for each")
    return said * count if len(said) == 1 else said


def slerp(a: Tensor, b: Tensor, amounts: Tensor) -> Tensor:
    """Spherical interpolation (N, K, ...) between rows of a and b (N, ...), at amounts (K,): 0 gives a, 1 gives b.

    The angle is that between the two as vectors; lengths, where they differ, go along (Shoemake 1985).
    """
    one, other = a.flatten(1).double(), b.flatten(1).double()
    angle = (F.normalize(one, dim=1) * F.normalize(other, dim=1)).sum(dim=1).clamp(-1, 1).acos()[:, None]  # (N, 1)
    amounts = amounts.to(one)
    small = angle.sin() < 1e-6  # nearly one direction, where the limit is the straight line
    safe = torch.where(small, 1.0, angle.sin())
    to_a = torch.where(small, 1 - amounts, ((1 - amounts) * angle).sin() / safe)  # (N, K)
    to_b = torch.where(small, amounts.expand_as(to_a), (amounts * angle).sin() / safe)
    between = to_a[..., None] * one[:, None] + to_b[..., None] * other[:, None]
    return between.unflatten(2, a.shape[1:]).to(a.dtype)


# --- manipulations ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def vary(pipe: UnCLIP, images: Pictures, n: int = 8, seed: int = 0, keep: float = 0.0, **settings: Any) -> Output:
    """n variations per image: what its embedding leaves open is drawn anew (section 3.1, figure 3).

    Args:
        seed: variation i of every image uses seed + i.
        keep: 0 to 1, how much of the image's own noise stays. At 0 the noise is all new, and the pipeline draws as it
            draws always. Above, the image is inverted and drawn by DDIM, unguided; at 1 it is reconstructed.
    """
    if not 0 <= keep <= 1:
        raise UserError(f"keep must lie between 0 and 1, not {keep}")
    prepared = prepare_images(pipe, images)
    seeds, noise = _seeds(seed, n) * len(prepared), None
    if keep:
        decoder = _backwards(pipe, "vary with keep", **settings).decoder
        latent = invert(pipe, prepared, steps=decoder.steps, guidance=decoder.guidance)
        embeddings, settings = latent.embeddings, BACKWARDS | settings
        noise = keep * latent.noise.repeat_interleave(n, dim=0) + math.sqrt(1 - keep**2) * pipe.decoder.draw_noise(
            seeds
        )
    else:
        embeddings = pipe.encode_image(prepared)
    embeddings = embeddings.repeat_interleave(n, dim=0)
    drawn, noise = pipe.decode_with_noise(embeddings, seed=seeds, noise=noise, **settings)
    return Output(drawn, [""] * len(seeds), seeds, embeddings, noise)


def blend(pipe: UnCLIP, a: Pictures, b: Pictures, frames: int = 8, **settings: Any) -> np.ndarray:
    """From a to b, embeddings and noise both along great circles (section 3.2, figure 4).

    Returns:
        uint8 (frames, H, W, C) of two images, (N, frames, H, W, C) of two lists or arrays of N. The first and the last
        frame are the reconstructions of a and b.
    """
    if frames < 2:
        raise UserError(f"a blend has at least 2 frames, not {frames}")
    first, last = prepare_images(pipe, a), prepare_images(pipe, b)
    if len(first) != len(last):
        raise UserError(f"{len(first)} images cannot be blended with {len(last)}; give as many of each")
    decoder = _backwards(pipe, "blend", **settings).decoder
    both = invert(pipe, np.concatenate([first, last]), steps=decoder.steps, guidance=decoder.guidance)
    amounts = torch.linspace(0, 1, frames)
    embeddings, noise = (slerp(*whole.chunk(2), amounts) for whole in (both.embeddings, both.noise))
    drawn = _redraw(pipe, both, embeddings, noise)
    return drawn[0] if is_single_image(a) and is_single_image(b) else drawn


@torch.inference_mode()
def text_difference(pipe: UnCLIP, before: str, after: str, space: Space = "image") -> Tensor:
    """The unit direction (1, D) in which the embedding of what `before` says moves to become what `after` says.

    In "text" it is the plain difference of the text embeddings (section 3.3). But texts and images lie in two regions
    of CLIP's space (Liang et al. 2022), and an image that is moved along a direction of texts loses its class. In
    "image" both texts are first carried over by the prior's linear map from text to image embeddings, where the prior
    has one, and the difference leans towards `after` itself: the further an image turns, the less is left of what it
    was, and what `after` says of that too takes its place.
    """
    text = pipe.encode_text(caption_list([before, after]))
    carried = space == "image" and isinstance(pipe.prior, MapsText)
    if carried:
        text = pipe.prior.map_text(text)
    difference = text[1:] - text[:1]
    if difference.norm() < 1e-6:
        raise UserError(f"{before!r} and {after!r} are the same to CLIP, so there is nothing to change")
    direction = F.normalize(difference, dim=1)
    return F.normalize(direction + LEAN * F.normalize(text[1:], dim=1), dim=1) if carried else direction


def change(
    pipe: UnCLIP,
    images: Pictures,
    before: str,
    after: str,
    amounts: Sequence[float] = (0, 0.25, 0.5),
    space: Space = "image",
    **settings: Any,
) -> np.ndarray:
    """Images moved from what `before` says towards what `after` says, with their own noise (section 3.3, figure 5).

    Args:
        amounts: K of them, 0 to 1: how far the embedding turns towards the normalised difference of the two texts. At 0
            the image is reconstructed; at 1 nothing is left of its embedding. The paper goes to 0.25 or 0.5.
        space: see `text_difference`.
        settings: steps and guidance; the inversion is guided as the drawing is.

    Returns:
        uint8 (N, K, H, W, C).
    """
    amounts = torch.tensor([float(amount) for amount in amounts])
    if len(amounts) == 0 or not ((amounts >= 0) & (amounts <= 1)).all():
        raise UserError(f"amounts must lie between 0 and 1, not {amounts.tolist()}")
    direction = text_difference(pipe, before, after, space)
    decoder = _backwards(pipe, "change", **{"guidance": DEFAULTS["change"]["guidance"]} | settings).decoder
    latent = invert(pipe, images, steps=decoder.steps, guidance=decoder.guidance)
    embeddings = slerp(latent.embeddings, direction.expand_as(latent.embeddings), amounts)
    return _redraw(pipe, latent, embeddings, latent.noise[:, None])


@torch.inference_mode()
def mix(pipe: UnCLIP, prompts: Mapping[str, float], n: int = 4, seed: int = 0, **settings: Any) -> Output:
    """n images that are part one prompt and part another, by weights of at least 0, of which the shares count.

    The prior draws an embedding for each prompt, all with the seed of the image, of several draws the likeliest unless
    `accept` says otherwise; their weighted mean, put back on the sphere, is decoded without text.
    """
    weights = torch.tensor([float(weight) for weight in prompts.values()])
    if not weights.isfinite().all() or (weights < 0).any() or weights.sum() <= 0:
        raise UserError(
            f"weights must be at least 0, and one above, not {', '.join(map(str, prompts.values())) or 'none'}"
        )
    seeds, captions = _seeds(seed, n), caption_list(list(prompts))
    settings = DEFAULTS["mix"] | settings
    drawn = pipe.embed(captions, n=n, seed=seed, **settings).unflatten(0, (len(captions), n))  # (P, n, D)
    shares = (weights / weights.sum()).to(drawn)
    embeddings = F.normalize(torch.einsum("pnd,p->nd", drawn, shares), dim=1)
    said = " + ".join(f"{share:.2g} {caption}" for caption, share in zip(captions, shares.tolist(), strict=True))
    images, noise = pipe.decode_with_noise(embeddings, seed=seeds, **settings)
    return Output(images, [said] * n, seeds, embeddings, noise)


@torch.inference_mode()
def inpaint(
    pipe: UnCLIP,
    images: Pictures,
    mask: OneImage,
    captions: Captions | None = None,
    n: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Output:
    """n images per image, painted where the mask is True; all other pixels come back bit for bit as prepared.

    Args:
        mask: see `prepare_mask`.
        captions: what the whole image is to show, one for each image or one for all. Of several draws of the prior the
            one closest to the image's own embedding is taken, and moved towards it by a third: a dark shoe gets the
            dark half of a boot. None takes the image's own embedding, so that the part is varied.
        seed: image i of every image uses seed + i.
    """
    prepared, painted = prepare_images(pipe, images), prepare_mask(pipe, images, mask)
    if not painted.any():
        warnings.warn("the mask selects no pixel, so nothing is painted", stacklevel=2)
    sampling = pipe.sampling.override(**PAINTING | settings)
    if sampling.decoder.sampler != "ddpm":
        raise UserError(f"inpaint draws with the ddpm sampler, not with {sampling.decoder.sampler}; leave sampler out")
    if "num_candidates" in settings:
        raise UserError("inpaint draws each image once; leave num_candidates out")
    said = [caption for caption in _captions(captions, len(prepared)) for _ in range(n)]
    seeds = _seeds(seed, n) * len(prepared)
    embeddings = pipe.encode_image(prepared).repeat_interleave(n, dim=0)
    if captions is not None:
        closest = _closest_draws(pipe, said, seeds, embeddings, **settings)
        embeddings = slerp(closest, embeddings, torch.tensor([OWN]))[:, 0]
    _needs(pipe, "inpaint", CanInpaint)
    known = torch.from_numpy(prepared).permute(0, 3, 1, 2).repeat_interleave(n, dim=0)
    painted, encoded = painted.repeat_interleave(n, dim=0), pipe.encode_captions(said)
    drawn = []
    for p in batches(len(seeds), sampling.batch_size):
        rows = (to_float(known[p]).to(pipe.device), painted[p].to(pipe.device), embeddings[p], encoded[p], seeds[p])
        drawn.append(pipe.decoder.inpaint_images(*rows, sampling.decoder))
    inside = painted.permute(0, 2, 3, 1).numpy()
    whole = np.where(inside, as_array(torch.cat(drawn)), known.permute(0, 2, 3, 1).numpy())
    return Output(whole, said, seeds, embeddings, pipe.decoder.draw_noise(seeds))


def _closest_draws(pipe: UnCLIP, captions: list[str], seeds: list[int], wanted: Tensor, **settings: Any) -> Tensor:
    """For each of N captions that of `CANDIDATES` draws of the prior which is closest to wanted (N, D)."""
    own = [(seed * CANDIDATES + i) % MAX_SEED for seed in seeds for i in range(CANDIDATES)]
    repeated = [caption for caption in captions for _ in range(CANDIDATES)]
    drawn = pipe.embed(repeated, seed=own, **{"prior_num_candidates": 1} | settings).unflatten(
        0, (-1, CANDIDATES)
    )  # (N, K, D)
    best = torch.einsum("nkd,nd->nk", drawn, wanted).argmax(dim=1)
    return drawn[torch.arange(len(best), device=best.device), best]


# --- looking inside ---------------------------------------------------------------------------------------------------


def principal_axes(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and principal axes (D, D), a row each, the widest first, of embeddings (M, D)."""
    embeddings = embeddings.double()
    mean = embeddings.mean(dim=0)
    _, axes = torch.linalg.eigh((embeddings - mean).T @ (embeddings - mean))
    return mean.float(), axes.T.flip(0).float().contiguous()


@torch.inference_mode()
def probe(
    pipe: UnCLIP,
    images: Pictures,
    components: Sequence[int] = (0, 5, 20, 80),
    seed: int = 0,
    reference: Tensor | None = None,
    **settings: Any,
) -> np.ndarray:
    """Images drawn from the first principal components of their embeddings (section 4, figure 7).

    Args:
        components: K of them, how many components are kept: 0 leaves the mean of all embeddings, D all of it; more than
            D are as many.
        seed: of the noise, the same for all.
        reference: embeddings (M, D) whose axes are taken. Without them those of the pipeline itself: draws of its prior
            without a caption, which follow the embeddings of its training images.

    Returns:
        uint8 (N, K, H, W, C).
    """
    if not components or any(count != int(count) or count < 0 for count in components):
        raise UserError(f"components must be whole numbers of at least 0, not {components}")
    embeddings = pipe.encode_image(prepare_images(pipe, images))
    if reference is None:
        reference = pipe.embed("", **AXES_FROM)
    mean, axes = (part.to(embeddings) for part in principal_axes(reference))
    kept = [embeddings.sub(mean) @ axes[: int(k)].T @ axes[: int(k)] + mean for k in components]
    shown = F.normalize(torch.stack(kept, dim=1), dim=2)  # (N, K, D)
    settings = DEFAULTS["probe"] | settings
    drawn = pipe.decode(shown.flatten(0, 1), seed=[seed] * shown[..., 0].numel(), **settings)
    return drawn.reshape(len(embeddings), len(components), *drawn.shape[1:])


@dataclass(frozen=True)
class Corrupted:
    """N images at K moments of the forward process."""

    times: list[float]
    """K times t, from nearly clean, 0, to pure noise, 1."""
    noised: np.ndarray
    """x_t, uint8 (N, K, H, W, C); what lies outside of the range of pixels is cut."""
    predicted: np.ndarray
    """The clean image that the decoder predicts from x_t and the embedding in one step, uint8 (N, K, H, W, C)."""


@torch.inference_mode()
def corrupt(pipe: UnCLIP, images: Pictures, times: int = 10, seed: int = 0) -> Corrupted:
    """The forward process (Ho et al. 2020, eq. 4) at so many evenly spread times, and one-step predictions from it."""
    prepared = prepare_images(pipe, images)
    process = pipe.decoder.process
    if times < 1:
        raise UserError(f"times must be at least 1, not {times}")
    levels = [process.level(t) for t in process.spread_times(times)]
    x0 = to_float(torch.from_numpy(prepared).permute(0, 3, 1, 2)).to(pipe.device)
    noise = RowNoise([seed_list(seed, 1)[0]] * len(x0))(x0)
    settings = pipe.sampling.override(guidance=1.0).decoder
    text = pipe.encode_captions([""] * len(x0))
    denoise = pipe.decoder.denoiser(pipe.encode_image(prepared), text, settings)
    noised = [level.alpha * x0 + level.sigma * noise for level in levels]
    predicted = [denoise(x, level).x0 for x, level in zip(noised, levels, strict=True)]
    return Corrupted(
        [level.t for level in levels],
        np.stack([as_array(x) for x in noised], axis=1),
        np.stack([as_array(x) for x in predicted], axis=1),
    )


def _seeds(seed: int, n: int) -> list[int]:
    if n < 1:
        raise UserError(f"n must be at least 1, not {n}")
    return seed_list(seed, n)

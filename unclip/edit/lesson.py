"""Three pictures that teach sampling: what DDPM's noise is for, what DDIM's few steps cost, what guidance does."""

import time
from pathlib import Path

import numpy as np
import torch

from unclip.diffusion.noise import DECODER_STREAM, RowNoise
from unclip.diffusion.samplers import ddpm
from unclip.diffusion.spacing import even_levels
from unclip.grids import captioned_grid
from unclip.images import save_png
from unclip.pipeline import UnCLIP, as_array

GUIDANCES = (0.0, 1.0, 2.0, 4.0, 8.0)


def lesson(pipe: UnCLIP, caption: str, n: int, seed: int, out: Path, slow: int = 1000) -> list[Path]:
    """Draw the three pictures, n images per row, into a folder. `slow` are the steps of DDPM."""
    slow = min(slow, pipe.decoder.config.diffusion.timesteps)
    embeddings = pipe.embed(caption, n=n, seed=seed)
    pictures = {
        "noise": noise_term(pipe, embeddings, seed, slow),
        "steps": few_steps(pipe, embeddings, seed, slow),
        "guidance": guidances(pipe, embeddings, seed),
    }
    paths = [out / f"lesson-{name}.png" for name in pictures]
    for path, rows in zip(paths, pictures.values(), strict=True):
        save_png(path, captioned_grid(rows, margin=230))
    return paths


@torch.inference_mode()
def noise_term(pipe: UnCLIP, embeddings: torch.Tensor, seed: int, steps: int) -> list[tuple[str, np.ndarray]]:
    """Ho et al. 2020, algorithm 2, with and without its sigma_t z: without it samples collapse to a blur."""
    seeds = list(range(seed, seed + len(embeddings)))
    settings = pipe.sampling.override(guidance=1.0).decoder
    denoise = pipe.decoder.denoiser(embeddings, pipe.encode_captions([""] * len(seeds)), settings)
    levels = even_levels(pipe.decoder.process, steps)
    rows = []
    for label, noise in (("as it is", RowNoise(seeds, DECODER_STREAM)), ("without its noise", torch.zeros_like)):
        images = as_array(ddpm(denoise, pipe.decoder.draw_noise(seeds), levels, noise))
        rows.append((f"DDPM {label}, {steps} steps: neighbours differ by {roughness(images):.1f} grey levels", images))
    return rows


def roughness(images: np.ndarray) -> float:
    """Mean difference between neighbouring pixels of uint8 (N, H, W, C), in grey levels: what a blur loses."""
    x = images.astype(float)
    return (np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean()) / 2


def few_steps(pipe: UnCLIP, embeddings: torch.Tensor, seed: int, slow: int) -> list[tuple[str, np.ndarray]]:
    """DDIM (Song et al. 2020) at 10, 20 and 50 steps beside DDPM at many, with the time of each as measured here."""
    runs = [("ddim", steps) for steps in (10, 20, 50)] + [("ddpm", slow)]
    pipe.decode(embeddings, seed=seed, steps=2, num_candidates=1)  # what only the first call takes is not counted
    timed = []
    for sampler, steps in runs:
        began = time.perf_counter()
        images = pipe.decode(embeddings, seed=seed, sampler=sampler, steps=steps, eta=0.0, num_candidates=1)
        timed.append((sampler.upper(), steps, time.perf_counter() - began, images))
    longest = timed[-1][2]
    return [(f"{s}, {steps} steps: {t:.2f} s, {longest / t:.0f}x faster" if s == "DDIM" else f"{s}, {steps} steps: "
             f"{t:.2f} s", images) for s, steps, t, images in timed]  # fmt: skip


def guidances(pipe: UnCLIP, embeddings: torch.Tensor, seed: int) -> list[tuple[str, np.ndarray]]:
    """Ho & Salimans 2022: 0 leaves the embedding out, 1 obeys it, more exaggerates what sets it apart."""
    rows = []
    for guidance in GUIDANCES:
        settings = {"guidance": guidance, "guidance_interval": (0.0, 1.0), "sampler": "ddim", "eta": 0.0, "steps": 50}
        images = pipe.decode(embeddings, seed=seed, num_candidates=1, **settings)
        cosine = (pipe.encode_image(images) * embeddings).sum(dim=1).mean().item()
        rows.append((f"guidance {guidance:g}: cosine to the embedding {cosine:.2f}", images))
    return rows

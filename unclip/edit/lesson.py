"""Three pictures that teach sampling: what DDPM's noise, DDIM's few steps and guidance do."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unclip.devices import inference
from unclip.diffusion.noise import DECODER_STREAM, RowNoise
from unclip.diffusion.samplers import ddpm
from unclip.diffusion.spacing import even_levels
from unclip.drawing import as_array
from unclip.edit.inversion import require_ability
from unclip.grids import captioned_grid
from unclip.images import save_png
from unclip.interfaces import CanDenoise
from unclip.pipeline import UnCLIP

GUIDANCES = (0.0, 1.0, 2.0, 4.0, 8.0)
LabelledRows = list[tuple[str, np.ndarray]]
"""Rows of a picture: a label, and images uint8 (n, H, W, C)."""


def draw_lesson(
    pipe: UnCLIP,
    caption: str,
    n: int,
    seed: int,
    out: Path,
    text: Mapping[str, str] | None = None,
    ddpm_steps: int = 1000,
) -> list[Path]:
    """Draw the three pictures, n images per row, into a folder, each with the text. Returns their paths."""
    require_ability(pipe, CanDenoise, "predict images from noised ones")
    ddpm_steps = min(ddpm_steps, pipe.decoder.config.diffusion.timesteps)
    embeddings = pipe.embed(caption, n=n, seed=seed)
    pictures = {
        "noise": compare_noise(pipe, embeddings, seed, ddpm_steps),
        "steps": compare_steps(pipe, embeddings, seed, ddpm_steps),
        "guidance": compare_guidance(pipe, embeddings, seed),
    }
    paths = [out / f"lesson-{name}.png" for name in pictures]
    for path, rows in zip(paths, pictures.values(), strict=True):
        save_png(path, captioned_grid(rows, margin=230), text=text)
    return paths


@inference()
def compare_noise(pipe: UnCLIP, embeddings: torch.Tensor, seed: int, steps: int) -> LabelledRows:
    """DDPM with and without its sigma_t z (Ho et al. 2020, algorithm 2). Without it samples collapse to a blur."""
    seeds = list(range(seed, seed + len(embeddings)))
    settings = pipe.sampling.override(guidance=1.0).decoder
    decoder = require_ability(pipe, CanDenoise, "denoise step by step")
    denoise = decoder.denoiser(embeddings, pipe.encode_captions([""] * len(seeds)), settings)
    levels = even_levels(decoder.process, steps)
    rows = []
    for label, noise in (("as it is", RowNoise(seeds, DECODER_STREAM)), ("without its noise", torch.zeros_like)):
        images = as_array(ddpm(denoise, pipe.decoder.draw_noise(seeds), levels, noise))
        rows.append((f"DDPM {label}, {steps} steps: neighbours differ by {roughness(images):.1f} grey levels", images))
    return rows


def roughness(images: np.ndarray) -> float:
    """Mean difference between neighbouring pixels of uint8 (N, H, W, C), in grey levels. A blur lowers it."""
    x = images.astype(float)
    return (np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean()) / 2


def compare_steps(pipe: UnCLIP, embeddings: torch.Tensor, seed: int, ddpm_steps: int) -> LabelledRows:
    """DDIM (Song et al. 2020) in 10, 20 and 50 steps beside DDPM in many, with measured times."""
    settings: dict[str, Any] = {"seed": seed, "eta": 0.0, "num_candidates": 1}
    pipe.decode(embeddings, seed=seed, steps=2, num_candidates=1)  # warm up, so that the first run is not slower
    runs = []
    for sampler, steps in (("ddim", 10), ("ddim", 20), ("ddim", 50), ("ddpm", ddpm_steps)):
        start = time.perf_counter()
        images = pipe.decode(embeddings, sampler=sampler, steps=steps, **settings)
        runs.append((sampler.upper(), steps, time.perf_counter() - start, images))
    _, _, ddpm_seconds, _ = runs[-1]
    rows = []
    for sampler, steps, seconds, images in runs:
        label = f"{sampler}, {steps} steps: {seconds:.2f} s"
        if sampler == "DDIM":
            label += f", {ddpm_seconds / seconds:.0f}x faster"
        rows.append((label, images))
    return rows


def compare_guidance(pipe: UnCLIP, embeddings: torch.Tensor, seed: int) -> LabelledRows:
    """Guidance (Ho & Salimans 2022): 0 ignores the embedding, 1 follows it, more exaggerates what sets it apart."""
    settings: dict[str, Any] = {"guidance_interval": (0.0, 1.0), "sampler": "ddim", "eta": 0.0, "steps": 50}
    rows = []
    for guidance in GUIDANCES:
        images = pipe.decode(embeddings, seed=seed, guidance=guidance, num_candidates=1, **settings)
        cosine = (pipe.encode_image(images) * embeddings).sum(dim=1).mean().item()
        rows.append((f"guidance {guidance:g}: cosine to the embedding {cosine:.2f}", images))
    return rows

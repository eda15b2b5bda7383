"""Draw the pictures that a pipeline of this folder must draw, and write them to a file.

    python tests/pipelines/draw_pictures.py tests/pipelines/format-4 tests/pipelines/format-4/pictures.npz

The version of unclip that wrote the pipeline also draws its pictures: later versions are compared with it.
"""

import sys

import numpy as np
import torch

from unclip import UnCLIP

CAPTIONS = ["an image of a sneaker", "a dark coat", ""]
SEED = 7


def draw_pictures(pipeline) -> dict[str, np.ndarray]:
    """Pictures by the pipeline's own settings, without guidance and reranking, and by another sampler."""
    pipe = UnCLIP.from_pretrained(pipeline)
    usual = pipe(CAPTIONS, n=2, seed=SEED)
    faithful = pipe(CAPTIONS, seed=SEED, style="faithful")
    ddpm = pipe(CAPTIONS, seed=SEED, steps=5, sampler="ddpm")
    embeddings = usual.embeddings.numpy()
    return {"usual": usual.images, "faithful": faithful.images, "ddpm": ddpm.images, "embeddings": embeddings}


def arithmetic() -> str:
    """The version of torch and the instructions of the CPU, on which rounding depends."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(sys.argv[2], arithmetic=arithmetic(), **draw_pictures(sys.argv[1]))

"""Draw images from captions with a trained pipeline.

    python sample.py "an image of a sneaker" "an image of a bag" --n 8
    python sample.py --captions-file captions.txt --npz --out outputs/x       # one caption a line
    echo "a dark narrow dress" | python sample.py --strip --gif
    python sample.py "" --n 16                                                # no caption: unconditional samples

Writes grid.png, one PNG per image, and samples.json into --out. Image i of a caption depends on the caption, the
settings and --seed + i alone. A setting that is not given is the pipeline's own (model_index.json), else the library's
default. On two CPU cores ten images take about two seconds, after some seconds of loading.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unclip import cli
from unclip.errors import UserError
from unclip.settings import Device, SamplingOptions, check_seeds

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Options(SamplingOptions):
    captions: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Captions; without any they are read from standard input, one a line."""
    captions_file: Path | None = None
    """Read captions from this file, one a line; empty lines are passed over."""
    checkpoint: Path | None = None
    """Folder of a trained pipeline (default: the newest complete one under checkpoints/, else the committed one)."""
    n: int = 1
    """Images per caption."""
    seed: int = 0
    """Image i of every caption uses seed + i."""
    out: Path = Path("outputs/samples")
    """Folder for the pictures."""
    npz: bool = False
    """Also write samples.npz: images uint8 (N, H, W, C), captions (N,), seeds (N,)."""
    strip: bool = False
    """Also write strip.png: of each caption's first image ten moments of the denoising, x_t above the predicted x0."""
    gif: bool = False
    """Also write denoising.gif: the same ten moments as an animation."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""


def read_captions(options: Options) -> list[str]:
    """From the arguments, the file, or standard input. Raises UserError if there are none."""
    if options.captions and options.captions_file:
        raise UserError("give captions as arguments or with --captions-file, not both")
    if options.captions:
        return list(options.captions)
    if options.captions_file is None and sys.stdin.isatty():
        raise UserError('no captions; give some, like: python sample.py "an image of a sneaker"')
    source = options.captions_file or "standard input"
    try:
        raw = options.captions_file.read_bytes() if options.captions_file else sys.stdin.buffer.read()
        captions = [line.strip() for line in raw.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not captions:
        raise UserError(f"{source} holds no caption; give one a line")
    return captions


def default_checkpoint() -> Path:
    """The newest complete pipeline under checkpoints/, else the committed one."""
    from unclip.checkpoint import newest_pipeline

    return newest_pipeline(ROOT / "checkpoints")


def write(options: Options, output, trajectory, sampling, checkpoint: Path) -> None:
    """Write everything that was asked for."""
    from dataclasses import asdict

    import numpy as np

    from unclip.files import write_arrays, write_json
    from unclip.images import captioned_grid, save_gif, save_png, to_pil
    from unclip.trajectory import denoising_frames, denoising_strip

    n, names = options.n, []
    for i, (image, seed) in enumerate(zip(output.images, output.seeds, strict=True)):
        names.append(f"{i // n:03d}-{slug(output.captions[i])}-seed{seed}.png")
        save_png(options.out / names[-1], to_pil(image))
    rows = [(output.captions[i], output.images[i : i + n]) for i in range(0, len(output.images), n)]
    save_png(options.out / "grid.png", captioned_grid(rows))
    if options.npz:
        arrays = {"images": output.images, "captions": np.array(output.captions), "seeds": np.array(output.seeds)}
        write_arrays(options.out / "samples.npz", arrays)
    if options.strip:
        save_png(options.out / "strip.png", denoising_strip(output.captions, trajectory, n))
    if options.gif:
        save_gif(options.out / "denoising.gif", denoising_frames(output.captions, trajectory, n))
    samples = [
        {"file": file, "caption": caption, "seed": seed}
        for file, caption, seed in zip(names, output.captions, output.seeds, strict=True)
    ]
    record = {"checkpoint": str(checkpoint), "settings": asdict(sampling), "samples": samples}
    write_json(options.out / "samples.json", record)


def slug(caption: str) -> str:
    """A short, safe piece of a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in caption.lower()).split()
    return "-".join(words)[:60].rstrip("-") or "image"


def main() -> None:
    options = cli.parse(Options, __doc__)
    captions = read_captions(options)
    if options.n < 1:
        raise UserError(f"--n must be at least 1, not {options.n}")
    check_seeds(options.seed, options.n)

    import tempfile
    import time

    from unclip.devices import pick_device
    from unclip.pipeline import UnCLIP
    from unclip.trajectory import Trajectory

    checkpoint = options.checkpoint or default_checkpoint()
    pipeline = UnCLIP.from_pretrained(checkpoint, pick_device(options.device))
    options.out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=options.out).close()  # a folder that cannot be written to is found before the work
    began = time.perf_counter()
    trajectory = Trajectory() if options.strip or options.gif else None
    output = pipeline(captions, options.n, options.seed, on_step=trajectory, **options.given())
    seconds = time.perf_counter() - began
    write(options, output, trajectory, pipeline.sampling.override(**options.given()), checkpoint)
    print(f"{len(output.images)} images in {seconds:.1f} s with {checkpoint}: {options.out / 'grid.png'}")


if __name__ == "__main__":
    cli.run(main)

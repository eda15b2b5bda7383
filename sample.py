"""Draw images from captions with a trained pipeline.

    python sample.py "an image of a sneaker" "an image of a bag" --n 8
    python sample.py --captions-file captions.txt --npz --out outputs/x       # one caption per line
    python sample.py "an image of a coat" --n 8 --style faithful              # no guidance, no choice: more varied
    echo "a dark narrow dress" | python sample.py --strip --gif
    python sample.py "" --n 16                                                # no caption: unconditional samples

Writes one PNG per image as they are drawn, then grid.png, of at most 64 captions and 32 images of each, and
samples.json into --out. Ctrl-C ends the drawing, and keeps and lists what is drawn. Image i of a caption depends on the
caption, the settings and --seed + i alone. A setting that is not given is the pipeline's own (in model_index.json),
else the library's; --help shows them, those of another pipeline with --checkpoint DIR. On two CPU cores ten images take
about half a second, after some seconds of loading.
"""

if __name__ == "__main__":  # before the other imports, which may take seconds
    from unclip.cli import signals

    signals.install()

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unclip.cli import options as cli
from unclip.cli import signals
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.settings import Device, SamplingOptions, check_seeds
from unclip.store.hub import find_pipeline
from unclip.store.index import newest_pipeline, read_sampling

ROOT = Path(__file__).resolve().parent
SHOWN = (64, 32)
"""Captions, and images of each, in the grid at most."""


@dataclass(frozen=True)
class Options(SamplingOptions):
    captions: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Captions; without any they are read from standard input, one per line."""
    captions_file: Path | None = None
    """Read captions from this file, one per line; empty lines are passed over."""
    checkpoint: Path | None = None
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub (default: the newest complete one
    under checkpoints/, else the committed one)."""
    n: int = bounded(1, 1, 10**9)
    """Images per caption."""
    seed: int = bounded(0, 0, 2**62)
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
        raise UserError(f"{source} holds no caption; give one per line")
    return captions


class Drawing:
    """The samples of one call: each image goes to its file as it is drawn, so that memory does not grow with them."""

    def __init__(self, options: Options, captions: list[str]):
        self.options, self.captions, self.count = options, captions, 0
        self.total = len(captions) * options.n
        self.shown: dict[int, list] = {}
        """Images of the grid, by caption."""

    def caption(self, i: int) -> str:
        return self.captions[i // self.options.n]

    def seed(self, i: int) -> int:
        return self.options.seed + i % self.options.n

    def file(self, i: int) -> str:
        return f"{i // self.options.n:03d}-{slug(self.caption(i))}-seed{self.seed(i)}.png"

    def is_shown(self, i: int) -> bool:
        return i // self.options.n < SHOWN[0] and i % self.options.n < SHOWN[1]

    def batches(self, size: int) -> Iterator[range]:
        for start in range(0, self.total, size):
            yield range(start, min(start + size, self.total))

    def keep(self, rows: range, images) -> None:
        """Write the images of a batch."""
        from unclip.images import save_png, to_pil

        for i, image in zip(rows, images, strict=True):
            save_png(self.options.out / self.file(i), to_pil(image), durable=False)  # easily drawn again
            if self.is_shown(i):
                self.shown.setdefault(i // self.options.n, []).append(image)
        self.count = rows.stop

    def samples(self, sampling, checkpoint: Path) -> Iterator[str]:
        """samples.json, line by line."""
        head = {"checkpoint": str(checkpoint), "settings": asdict(sampling)}
        yield json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "samples": ['
        for i in range(self.count):
            row = {"file": self.file(i), "caption": self.caption(i), "seed": self.seed(i)}
            yield f"{',' if i else ''}\n    {json.dumps(row)}"
        yield "\n  ]\n}\n"


def draw(drawing: Drawing, pipeline, trajectory, settings: dict, batch_size: int) -> int:
    """Draw until all is drawn, or a signal comes, whose number is returned."""
    from tqdm import tqdm

    with signals.postponed() as stop, tqdm(total=drawing.total, unit="image", leave=False, disable=None) as bar:
        for rows in drawing.batches(batch_size):
            shown = [at for at, i in enumerate(rows) if drawing.is_shown(i)]
            watch = trajectory.of_samples(shown) if trajectory and shown else None
            seeds = [drawing.seed(i) for i in rows]
            output = pipeline(map(drawing.caption, rows), 1, seeds, on_step=watch, **settings)
            drawing.keep(rows, output.images)
            bar.update(len(rows))
            if stop.number:
                break
        number, stop.number = stop.number, 0
    return number


def write(drawing: Drawing, trajectory, sampling, checkpoint: Path) -> None:
    """Write what is asked for beside the images themselves."""
    import numpy as np
    from PIL import Image

    from unclip.grids import captioned_grid, save_gif
    from unclip.images import save_png
    from unclip.store.array_files import write_npz_by_rows
    from unclip.store.files import write_atomically
    from unclip.trajectory import denoising_frames, denoising_strip

    options, count = drawing.options, drawing.count
    save_png(options.out / "grid.png", captioned_grid([(drawing.captions[c], r) for c, r in drawing.shown.items()]))
    each = min(options.n, SHOWN[1], count)
    shown = [drawing.captions[c] for c, row in drawing.shown.items() for _ in range(each) if len(row) == each]
    if options.strip and shown:
        save_png(options.out / "strip.png", denoising_strip(shown, trajectory, each))
    if options.gif and shown:
        save_gif(options.out / "denoising.gif", denoising_frames(shown, trajectory, each))
    if options.npz:
        shape = next(iter(drawing.shown.values()))[0].shape
        longest = max(1, *map(len, drawing.captions))

        def pixels(i: int) -> np.ndarray:
            with Image.open(options.out / drawing.file(i)) as picture:
                return np.asarray(picture).reshape(shape)

        columns = {
            "images": (np.dtype(np.uint8), shape, pixels),
            "captions": (np.dtype(f"<U{longest}"), (), drawing.caption),
            "seeds": (np.dtype(np.int64), (), drawing.seed),
        }
        write_npz_by_rows(options.out / "samples.npz", count, columns)
    write_atomically(options.out / "samples.json", drawing.samples(sampling, checkpoint))


def slug(caption: str) -> str:
    """A short, safe piece of a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in caption.lower()).split()
    return "-".join(words)[:60].rstrip("-") or "image"


def main() -> None:
    named = cli.argument("checkpoint")
    checkpoint = Path(named) if named else newest_pipeline(ROOT / "checkpoints")
    folder = find_pipeline(checkpoint)
    own = read_sampling(folder)
    options = cli.parse(Options, __doc__, Options.of(own, cli.argument("style", "clear")))
    settings = options.changed(own)
    sampling = own.override(**settings)  # refuses what is out of range before anything slow is done
    captions = read_captions(options)
    check_seeds(options.seed, options.n)

    import tempfile
    import time

    from unclip.devices import pick_device
    from unclip.pipeline import UnCLIP
    from unclip.trajectory import Trajectory

    pipeline = UnCLIP.from_pretrained(folder, pick_device(options.device))
    options.out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=options.out).close()  # a folder that cannot be written to is found before the work
    began = time.perf_counter()
    trajectory = Trajectory() if options.strip or options.gif else None
    drawing = Drawing(options, captions)
    stopped_by = draw(drawing, pipeline, trajectory, settings, sampling.batch_size)
    seconds = time.perf_counter() - began
    write(drawing, trajectory, sampling, checkpoint)
    if stopped_by:
        kept = f"stopped by {signals.name(stopped_by)} after {drawing.count} of {drawing.total} images"
        print(f"{kept}, which are in {options.out}", file=sys.stderr)
        sys.exit(128 + stopped_by)
    print(f"{drawing.count} images in {seconds:.1f} s with {checkpoint}: {options.out / 'grid.png'}")


if __name__ == "__main__":
    cli.run(main)

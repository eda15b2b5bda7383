"""Draw images from captions with a trained pipeline.

    unclip sample "an image of a sneaker" "an image of a bag" --n 8        # in a checkout also: python sample.py ...
    unclip sample --captions-file captions.txt --npz --out outputs/x       # one caption per line
    unclip sample "an image of a coat" --n 8 --style faithful              # not guided, reranked or fast: more varied
    unclip sample "a shoe" --negative "a dark shoe" --guidance 3           # guidance leads away from this caption
    echo "a dark narrow dress" | unclip sample --strip --gif
    unclip sample "" --n 16                                                # no caption: unconditional samples

Writes one PNG per image as they are drawn, then grid.png, of at most 64 captions and 32 images of each, and
samples.json into --out. Each PNG holds its caption, seed, settings and pipeline as text. Ctrl-C ends the drawing, and
keeps and lists the images drawn so far. Image i of a caption depends on the caption, the settings and --seed + i alone.
Settings that are not given come from the pipeline (model_index.json), else from the library; --help shows them, those
of another pipeline with --checkpoint DIR. On two CPU cores ten images take about a quarter of a second, after some
seconds of loading.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unclip.cli import signals
from unclip.cli.options import given_settings, parse, read_early_options
from unclip.errors import UserError, quantity
from unclip.fields import bounded
from unclip.picture_text import describe_picture, picture_name
from unclip.settings import Device, SamplingOptions, check_given, check_seeds
from unclip.store.hub import find_pipeline, is_hub_name
from unclip.store.index import newest_pipeline, read_sampling
from unclip.text import decode_lines, is_text

if TYPE_CHECKING:
    import numpy as np

    from unclip.pipeline import UnCLIP
    from unclip.trajectory import Trajectory

GRID_CAPTIONS = 64
"""Captions in the grid, at most."""
GRID_IMAGES = 32
"""Images of each caption in the grid, at most."""


@dataclass(frozen=True)
class SampleOptions(SamplingOptions):
    captions: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Captions; without any they are read from standard input, one per line."""
    captions_file: Path | None = None
    """Read captions from this file, one per line; empty lines are skipped."""
    checkpoint: Path | None = None
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub (default: the newest complete one
    under checkpoints/, else the committed one)."""
    negative: str | None = None
    """Caption that guidance leads away from; it needs a guidance or a prior_guidance other than 1."""
    n: int = bounded(1, 1, 10**9)
    """Images per caption."""
    seed: int = bounded(0, 0, 2**62)
    """Image i of every caption uses seed + i."""
    out: Path = Path("outputs/samples")
    """Folder for the pictures."""
    npz: bool = False
    """Also write samples.npz: images uint8 (N, H, W, C), captions (N,), seeds (N,)."""
    strip: bool = False
    """Also write strip.png: ten moments of the denoising of each caption's first image, x_t above the predicted x0."""
    gif: bool = False
    """Also write denoising.gif: the same ten moments as an animation."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""


def main(argv: Sequence[str] | None = None, checkpoints: Path = Path("checkpoints")) -> int:
    """Draw what the arguments ask for; `checkpoints` is the folder of the pipelines to choose from without any."""
    named = read_early_options(argv)
    checkpoint = Path(named.checkpoint) if named.checkpoint else newest_pipeline(checkpoints)
    folder = find_pipeline(checkpoint)
    stored = read_sampling(folder)
    options = parse(SampleOptions, __doc__, SampleOptions.of(stored, named.style or "clear"), argv)
    settings = given_settings(argv, options, stored)
    sampling = stored.for_drawing(**settings)  # refuses what is out of range before anything slow is done
    captions = read_captions(options)
    check_seeds(options.seed, options.n)

    import time

    from unclip.devices import pick_device
    from unclip.pipeline import UnCLIP
    from unclip.store.training_captions import read_training_captions
    from unclip.trajectory import Trajectory
    from unclip.unknown_words import describe_unknown_words

    if not named.checkpoint:
        print(f"drawing with {checkpoint}; name another pipeline with --checkpoint DIR", flush=True)
    pipeline = UnCLIP.from_pretrained(folder, pick_device(options.device))
    check_given(settings, pipeline.parts)
    pipeline.sampling = sampling
    if is_hub_name(checkpoint):
        pipeline.origin["name"] = str(checkpoint)
    unknown = describe_unknown_words(pipeline, captions, read_training_captions(folder))
    if unknown:
        print(unknown, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    samples = Samples(options, captions)
    trajectory = Trajectory() if options.strip or options.gif else None
    began = time.perf_counter()
    stopped_by = draw(samples, pipeline, trajectory)
    seconds = time.perf_counter() - began
    write_summaries(samples, trajectory, pipeline, checkpoint)
    if samples.others:
        others = f"{quantity(len(samples.others), 'file')} of earlier calls"
        print(f"{options.out} also holds {others}, which samples.json does not describe; text in the PNGs does")
    if stopped_by:
        progress = f"stopped by {signals.name(stopped_by)} after {samples.count} of {quantity(samples.total, 'image')}"
        print(f"{progress}, which are in {options.out}", file=sys.stderr)
        return 128 + stopped_by
    print(f"{quantity(samples.count, 'image')} in {seconds:.1f} s with {checkpoint}: {options.out / 'grid.png'}")
    return 0


def read_captions(options: SampleOptions) -> list[str]:
    """Take the captions from the arguments, the file, or standard input. Raises UserError if there are none."""
    if options.captions and options.captions_file:
        raise UserError("give captions as arguments or with --captions-file, not both")
    if options.captions:
        return list(options.captions)
    if options.captions_file is None and sys.stdin.isatty():
        raise UserError('no captions; give some as arguments, like "an image of a sneaker", or with --captions-file')
    source = options.captions_file or "standard input"
    try:
        raw = options.captions_file.read_bytes() if options.captions_file else sys.stdin.buffer.read()
        lines, has_windows_lines = decode_lines(raw)
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not text ({error.reason} at byte {error.start})") from error
    if not all(map(is_text, lines)):
        raise UserError(f"{source} is not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")
    if has_windows_lines:
        print(f"{source} is not UTF-8 throughout; its other lines are read as Windows-1252", file=sys.stderr)
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise UserError(f"{source} holds no caption; give one per line")
    return captions


class Samples:
    """The images of one call, n of each caption in turn. Each goes to disk as it is drawn; memory stays small."""

    def __init__(self, options: SampleOptions, captions: list[str]):
        import tempfile

        self.options = options
        self.captions = captions
        self.described = {} if options.negative is None else {"negative": options.negative}
        """The pictures' text beside captions, seeds and settings."""
        self.total = len(captions) * options.n
        self.count = 0
        """Images drawn so far."""
        self.grid: dict[int, list[np.ndarray]] = {}
        """Images for the grid, by the index of their caption."""
        # Opened in any case: a folder that cannot be written to is then refused before the work.
        self.pixels = tempfile.TemporaryFile(dir=options.out)  # noqa: SIM115
        """The pixels of all images drawn so far, if they are to go to samples.npz."""
        optional = {"strip.png": options.strip, "denoising.gif": options.gif, "samples.npz": options.npz}
        self.others = {name for name, asked in optional.items() if not asked and (options.out / name).exists()}
        self.others |= {path.name for path in options.out.glob("*-seed*.png")}
        """Names of the files of earlier calls that are still there."""

    def caption(self, i: int) -> str:
        return self.captions[i // self.options.n]

    def seed(self, i: int) -> int:
        return self.options.seed + i % self.options.n

    def file(self, i: int) -> str:
        return picture_name(i // self.options.n, self.caption(i), self.seed(i))

    def is_in_grid(self, i: int) -> bool:
        return i // self.options.n < GRID_CAPTIONS and i % self.options.n < GRID_IMAGES

    def batches(self, size: int) -> Iterator[range]:
        for start in range(0, self.total, size):
            yield range(start, min(start + size, self.total))

    def write_batch(self, batch: range, images: "np.ndarray", pipeline: "UnCLIP") -> None:
        """Write the images of a batch, uint8 (B, H, W, C)."""
        from unclip.images import save_png, to_pil

        for i, image in zip(batch, images, strict=True):
            text = describe_picture(pipeline, [self.caption(i)], [self.seed(i)], pipeline.sampling, **self.described)
            save_png(self.options.out / self.file(i), to_pil(image), durable=False, text=text)  # easily drawn again
            self.others.discard(self.file(i))
            if self.is_in_grid(i):
                self.grid.setdefault(i // self.options.n, []).append(image)
        if self.options.npz:
            self.pixels.write(images.tobytes())
        self.count = batch.stop

    def write_npz(self) -> None:
        import numpy as np

        from unclip.store.array_files import write_npz_by_rows

        shape = next(iter(self.grid.values()))[0].shape
        size = int(np.prod(shape))
        longest = max(1, *map(len, self.captions))

        def read_image(i: int) -> np.ndarray:
            self.pixels.seek(i * size)
            return np.frombuffer(self.pixels.read(size), np.uint8).reshape(shape)

        columns = {
            "images": (np.dtype(np.uint8), shape, read_image),
            "captions": (np.dtype(f"<U{longest}"), (), self.caption),
            "seeds": (np.dtype(np.int64), (), self.seed),
        }
        write_npz_by_rows(self.options.out / "samples.npz", self.count, columns)

    def json_lines(self, pipeline: "UnCLIP", checkpoint: Path) -> Iterator[str]:
        """The text of samples.json, piece by piece."""
        sampling = asdict(pipeline.sampling)
        head = {"checkpoint": str(checkpoint), "pipeline": pipeline.origin, "settings": sampling} | self.described
        yield json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "samples": ['
        for i in range(self.count):
            entry = {"file": self.file(i), "caption": self.caption(i), "seed": self.seed(i)}
            yield f"{',' if i else ''}\n    {json.dumps(entry)}"
        yield "\n  ]\n}\n"


def draw(samples: Samples, pipeline: "UnCLIP", trajectory: "Trajectory | None") -> int:
    """Draw until all is drawn. Returns 0, or the number of a signal that has ended the drawing early."""
    from tqdm import tqdm

    with signals.postponed() as stop, tqdm(total=samples.total, unit="image", leave=False, disable=None) as bar:
        for batch in samples.batches(pipeline.sampling.batch_size):
            watched = [row for row, i in enumerate(batch) if samples.is_in_grid(i)]
            on_step = trajectory.of_samples(watched) if trajectory and watched else None
            captions = [samples.caption(i) for i in batch]
            seeds = [samples.seed(i) for i in batch]
            output = pipeline(captions, 1, seeds, on_step=on_step, negative=samples.options.negative)
            samples.write_batch(batch, output.images, pipeline)
            bar.update(len(batch))
            if stop.number:
                break
        number = stop.number
        stop.number = 0
    return number


def write_summaries(samples: Samples, trajectory: "Trajectory | None", pipeline: "UnCLIP", checkpoint: Path) -> None:
    """Write the grid, samples.json, and what else the options ask for."""
    import numpy as np

    from unclip.grids import captioned_grid, save_gif
    from unclip.images import save_png
    from unclip.store.files import write_atomically
    from unclip.trajectory import denoising_frames, denoising_strip

    options = samples.options
    rows = [(samples.captions[c], np.stack(images)) for c, images in samples.grid.items()]
    each = min(options.n, GRID_IMAGES, samples.count)
    seeds = range(options.seed, options.seed + each)
    text = describe_picture(pipeline, [caption for caption, _ in rows], seeds, pipeline.sampling, **samples.described)
    save_png(options.out / "grid.png", captioned_grid(rows), text=text)
    watched = [caption for caption, images in rows for _ in range(each) if len(images) == each]
    if options.strip and watched and trajectory:
        save_png(options.out / "strip.png", denoising_strip(watched, trajectory, each), text=text)
    if options.gif and watched and trajectory:
        save_gif(options.out / "denoising.gif", denoising_frames(watched, trajectory, each))
    if options.npz:
        samples.write_npz()
    write_atomically(options.out / "samples.json", samples.json_lines(pipeline, checkpoint))

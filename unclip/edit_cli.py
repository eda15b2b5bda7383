"""Vary, blend, change, mix, paint in, and look inside: what an image embedding allows.

    python -m unclip.edit vary shoe.png --n 8 --out outputs/vary                    # new noise, same embedding
    python -m unclip.edit blend shoe.png boot.png --frames 8                        # also blend.gif
    python -m unclip.edit change coat.png --before "a dark coat" --after "a light coat" --amounts 0 0.25 0.5
    python -m unclip.edit mix --prompts "a sneaker" "an ankle boot" --weights 1 1
    python -m unclip.edit inpaint shoe.png --mask mask.png --caption "an ankle boot"    # white is painted
    python -m unclip.edit probe shoe.png bag.png --components 0 5 20 80
    python -m unclip.edit corrupt shoe.png --times 10
    python -m unclip.edit lesson                                                    # three pictures that teach sampling

Each writes a labelled picture named after the command into --out, and with --npz the arrays. Images are files of any
size; the middle square is taken. On two CPU cores a command takes some seconds, the lesson a minute or two.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from unclip import cli, edit
from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.files import write_arrays
from unclip.images import captioned_grid, save_gif, save_png, to_pil
from unclip.index import newest_pipeline
from unclip.lesson import lesson
from unclip.pipeline import Output, UnCLIP
from unclip.settings import SAMPLING_OPTIONS, Device, SamplingOptions

Images = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True)
class Options(SamplingOptions):
    checkpoint: Path | None = None
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub (default: the newest complete one
    under checkpoints/)."""
    out: Path = Path("outputs/edit")
    """Folder for what is written."""
    npz: bool = False
    """Also write the arrays, named after the command."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""


@dataclass(frozen=True)
class VaryOptions(Options):
    images: Images = ()
    """Files of images."""
    n: int = 8
    """Variations per image."""
    seed: int = 0
    """Variation i of every image uses seed + i."""
    keep: float = 0.0
    """How much of the image's own noise stays: 0 none, 1 all of it."""


@dataclass(frozen=True)
class BlendOptions(Options):
    images: Images = ()
    """Two files of images."""
    frames: int = 8
    """Frames of the blend, both ends included."""


@dataclass(frozen=True)
class ChangeOptions(Options):
    images: Images = ()
    """Files of images."""
    before: str = ""
    """What the images show."""
    after: str = ""
    """What they are to show."""
    amounts: tuple[float, ...] = (0, 0.25, 0.5)
    """How far to go, each from 0 to 1."""
    space: edit.Space = "image"
    """Where the texts' difference is taken: among texts, or carried over to images by the prior."""


@dataclass(frozen=True)
class MixOptions(Options):
    prompts: tuple[str, ...] = ()
    """Captions to mix."""
    weights: tuple[float, ...] = ()
    """Their weights (default: all equal)."""
    n: int = 4
    """Images."""
    seed: int = 0
    """Image i uses seed + i."""


@dataclass(frozen=True)
class InpaintOptions(Options):
    images: Images = ()
    """Files of images."""
    mask: Path | None = None
    """File of an image, white where to paint."""
    caption: str | None = None
    """What the images are to show (default: what they show)."""
    n: int = 4
    """Paintings per image."""
    seed: int = 0
    """Painting i of every image uses seed + i."""


@dataclass(frozen=True)
class ProbeOptions(Options):
    images: Images = ()
    """Files of images."""
    components: tuple[int, ...] = (0, 5, 20, 80)
    """How many principal components to keep."""
    seed: int = 0
    """Of the noise."""


@dataclass(frozen=True)
class CorruptOptions(Options):
    images: Images = ()
    """Files of images."""
    times: int = 10
    """Moments of the forward process."""
    seed: int = 0
    """Of the noise."""


@dataclass(frozen=True)
class LessonOptions(Options):
    caption: str = ""
    """What to draw (default: images of the data's own kinds, as the prior draws them without a caption)."""
    n: int = 8
    """Images per row."""
    seed: int = 0
    """Image i of every row uses seed + i."""


Command = (
    Annotated[VaryOptions, tyro.conf.subcommand("vary", description="Draw anew what an embedding leaves open.")]
    | Annotated[BlendOptions, tyro.conf.subcommand("blend", description="From one image to another, step by step.")]
    | Annotated[ChangeOptions, tyro.conf.subcommand("change", description="Move images from one text to another.")]
    | Annotated[MixOptions, tyro.conf.subcommand("mix", description="Part one prompt, part another.")]
    | Annotated[InpaintOptions, tyro.conf.subcommand("inpaint", description="Paint a part of images anew.")]
    | Annotated[ProbeOptions, tyro.conf.subcommand("probe", description="Draw from few components of an embedding.")]
    | Annotated[CorruptOptions, tyro.conf.subcommand("corrupt", description="Watch images drown in noise.")]
    | Annotated[LessonOptions, tyro.conf.subcommand("lesson", description="Three pictures that teach sampling.")]
)

Rows = list[tuple[str, np.ndarray]]


def vary(pipe: UnCLIP, o: VaryOptions) -> tuple[Rows, dict[str, Any]]:
    output = edit.vary(pipe, o.images, o.n, o.seed, o.keep, **given(o))
    return with_originals(pipe, o.images, per_image(output, o.n)), arrays_of(output)


def blend(pipe: UnCLIP, o: BlendOptions) -> tuple[Rows, dict[str, Any]]:
    if len(o.images) != 2:
        raise UserError(f"blend takes two images, not {len(o.images)}")
    frames = edit.blend(pipe, *o.images, o.frames, **given(o))
    there_and_back = [*frames, *frames[-2::-1]]
    save_gif(o.out / "blend.gif", [to_pil(frame, 168) for frame in there_and_back], 120)
    return [(" to ".join(image.stem for image in o.images), frames)], {"images": frames}


def change(pipe: UnCLIP, o: ChangeOptions) -> tuple[Rows, dict[str, Any]]:
    if not o.before or not o.after:
        raise UserError("change needs --before and --after, two captions")
    images = edit.change(pipe, o.images, o.before, o.after, o.amounts, o.space, **given(o))
    return with_originals(pipe, o.images, images), {"images": images, "amounts": np.array(o.amounts)}


def mix(pipe: UnCLIP, o: MixOptions) -> tuple[Rows, dict[str, Any]]:
    weights = o.weights or (1.0,) * len(o.prompts)
    if len(weights) != len(o.prompts):
        raise UserError(f"{len(weights)} weights do not go with {len(o.prompts)} prompts")
    output = edit.mix(pipe, dict(zip(o.prompts, weights, strict=True)), o.n, o.seed, **given(o))
    return [(output.captions[0], output.images)], arrays_of(output)


def inpaint(pipe: UnCLIP, o: InpaintOptions) -> tuple[Rows, dict[str, Any]]:
    if o.mask is None:
        raise UserError("inpaint needs --mask, an image that is white where to paint")
    output = edit.inpaint(pipe, o.images, o.mask, o.caption, o.n, o.seed, **given(o))
    return with_originals(pipe, o.images, per_image(output, o.n)), arrays_of(output)


def probe(pipe: UnCLIP, o: ProbeOptions) -> tuple[Rows, dict[str, Any]]:
    images = edit.probe(pipe, o.images, o.components, o.seed, **given(o))
    return with_originals(pipe, o.images, images), {"images": images, "components": np.array(o.components)}


def corrupt(pipe: UnCLIP, o: CorruptOptions) -> tuple[Rows, dict[str, Any]]:
    if settings := given(o):
        raise UserError(f"corrupt draws nothing and takes no {next(iter(settings))}; leave it out")
    c = edit.corrupt(pipe, o.images, o.times, o.seed)
    rows = []
    for image, noised, predicted in zip(o.images, c.noised, c.predicted, strict=True):
        rows += [(f"{image.stem}: x_t", noised), ("predicted in one step", predicted)]
    return rows, {"times": np.array(c.times), "noised": c.noised, "predicted": c.predicted}


COMMANDS = {
    VaryOptions: vary,
    BlendOptions: blend,
    ChangeOptions: change,
    MixOptions: mix,
    InpaintOptions: inpaint,
    ProbeOptions: probe,
    CorruptOptions: corrupt,
}


def heads(pipe: UnCLIP, o: Options) -> tuple[str, ...]:
    """Headings over the columns, one per image of a row."""
    if isinstance(o, ChangeOptions):
        return ("given", *(f"{amount:g}" for amount in o.amounts))
    if isinstance(o, ProbeOptions):
        return ("given", *(str(count) for count in o.components))
    if isinstance(o, CorruptOptions):
        last = pipe.decoder.diffusion().timesteps - 1
        return tuple(str(t) for t in np.linspace(0, last, o.times).round().astype(int))
    return ("given",) + ("",) * o.n if isinstance(o, (VaryOptions, InpaintOptions)) else ()


def with_originals(pipe: UnCLIP, files: tuple[Path, ...], drawn: np.ndarray) -> Rows:
    """A row per image: as it was given, prepared, then what was drawn of it (N, K, H, W, C)."""
    given = edit.prepare(pipe, files)[:, None]
    whole = np.concatenate([given, drawn], axis=1)
    return [(file.stem, row) for file, row in zip(files, whole, strict=True)]


def per_image(output: Output, n: int) -> np.ndarray:
    return output.images.reshape(-1, n, *output.images.shape[1:])


def arrays_of(output: Output) -> dict[str, np.ndarray]:
    return {
        "images": output.images,
        "captions": np.array(output.captions),
        "seeds": np.array(output.seeds),
        "embeddings": output.embeddings.cpu().numpy(),
    }


def given(o: Options) -> dict[str, Any]:
    """The settings that the command line names: edits have defaults of their own for the others."""
    return {name: getattr(o, name) for name in ("style", *SAMPLING_OPTIONS) if cli.argument(name)}


def main() -> None:
    o = cli.parse(Command, __doc__)
    if getattr(o, "images", None) == ():
        raise UserError("no image; give the files of some, like: python -m unclip.edit vary shoe.png")
    checkpoint = o.checkpoint or newest_pipeline(Path("checkpoints"))
    pipe = UnCLIP.from_pretrained(checkpoint, pick_device(o.device))
    o.out.mkdir(parents=True, exist_ok=True)
    if isinstance(o, LessonOptions):
        for path in lesson(pipe, o.caption, o.n, o.seed, o.out):
            print(path)
        return
    name, began = COMMANDS[type(o)].__name__, time.perf_counter()
    rows, arrays = COMMANDS[type(o)](pipe, o)
    seconds = time.perf_counter() - began
    save_png(o.out / f"{name}.png", captioned_grid(rows, margin=150, columns=heads(pipe, o)))
    if o.npz:
        write_arrays(o.out / f"{name}.npz", arrays)
    print(f"{seconds:.1f} s with {checkpoint}: {o.out / f'{name}.png'}")

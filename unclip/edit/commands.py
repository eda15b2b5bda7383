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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import numpy as np
import tyro

from unclip import edit
from unclip.cli.options import find_given, parse, read_early_options
from unclip.devices import pick_device
from unclip.edit.lesson import lesson
from unclip.errors import UserError
from unclip.grids import captioned_grid, save_gif
from unclip.images import save_png, to_pil
from unclip.pipeline import Output, UnCLIP
from unclip.settings import Device, Sampling, SamplingOptions
from unclip.store.array_files import write_npz
from unclip.store.hub import find_pipeline
from unclip.store.index import newest_pipeline, read_sampling

Images = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True)
class Options:
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
class DrawingOptions(SamplingOptions, Options):
    """Of commands that can be told how to draw."""


@dataclass(frozen=True)
class VaryOptions(DrawingOptions):
    images: Images = ()
    """Files of images."""
    n: int = 8
    """Variations per image."""
    seed: int = 0
    """Variation i of every image uses seed + i."""
    keep: float = 0.0
    """How much of the image's own noise stays: 0 none, 1 all of it. Above 0, steps and guidance are by default those of
    blend."""


@dataclass(frozen=True)
class BlendOptions(DrawingOptions):
    images: Images = ()
    """Two files of images."""
    frames: int = 8
    """Frames of the blend, both ends included."""


@dataclass(frozen=True)
class ChangeOptions(DrawingOptions):
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
class MixOptions(DrawingOptions):
    prompts: tuple[str, ...] = ()
    """Captions to mix."""
    weights: tuple[float, ...] = ()
    """Their weights (default: all equal)."""
    n: int = 4
    """Images."""
    seed: int = 0
    """Image i uses seed + i."""


@dataclass(frozen=True)
class InpaintOptions(DrawingOptions):
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
class ProbeOptions(DrawingOptions):
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


TensorBatch = list[tuple[str, np.ndarray]]
Drawn = tuple[TensorBatch, dict[str, np.ndarray]]
"""Labelled rows of images, and the arrays for --npz."""


def vary(pipe: UnCLIP, o: VaryOptions, settings: dict[str, Any]) -> Drawn:
    output = edit.vary(pipe, o.images, o.n, o.seed, o.keep, **settings)
    return with_originals(pipe, o.images, per_image(output, o.n)), arrays_of(output)


def blend(pipe: UnCLIP, o: BlendOptions, settings: dict[str, Any]) -> Drawn:
    if len(o.images) != 2:
        raise UserError(f"blend takes two images, not {len(o.images)}")
    frames = edit.blend(pipe, *o.images, o.frames, **settings)
    there_and_back = [*frames, *frames[-2::-1]]
    save_gif(o.out / "blend.gif", [to_pil(frame, 168) for frame in there_and_back], 120)
    return [(" to ".join(image.stem for image in o.images), frames)], {"images": frames}


def change(pipe: UnCLIP, o: ChangeOptions, settings: dict[str, Any]) -> Drawn:
    if not o.before or not o.after:
        raise UserError("change needs --before and --after, two captions")
    images = edit.change(pipe, o.images, o.before, o.after, o.amounts, o.space, **settings)
    return with_originals(pipe, o.images, images), {"images": images, "amounts": np.array(o.amounts)}


def mix(pipe: UnCLIP, o: MixOptions, settings: dict[str, Any]) -> Drawn:
    weights = o.weights or (1.0,) * len(o.prompts)
    if len(weights) != len(o.prompts):
        raise UserError(f"{len(weights)} weights do not go with {len(o.prompts)} prompts")
    output = edit.mix(pipe, dict(zip(o.prompts, weights, strict=True)), o.n, o.seed, **settings)
    return [(output.captions[0], output.images)], arrays_of(output)


def inpaint(pipe: UnCLIP, o: InpaintOptions, settings: dict[str, Any]) -> Drawn:
    if o.mask is None:
        raise UserError("inpaint needs --mask, an image that is white where to paint")
    output = edit.inpaint(pipe, o.images, o.mask, o.caption, o.n, o.seed, **settings)
    return with_originals(pipe, o.images, per_image(output, o.n)), arrays_of(output)


def probe(pipe: UnCLIP, o: ProbeOptions, settings: dict[str, Any]) -> Drawn:
    images = edit.probe(pipe, o.images, o.components, o.seed, **settings)
    return with_originals(pipe, o.images, images), {"images": images, "components": np.array(o.components)}


def corrupt(pipe: UnCLIP, o: CorruptOptions) -> Drawn:
    c = edit.corrupt(pipe, o.images, o.times, o.seed)
    rows = []
    for image, noised, predicted in zip(o.images, c.noised, c.predicted, strict=True):
        rows += [(f"{image.stem}: x_t", noised), ("predicted in one step", predicted)]
    return rows, {"times": np.array(c.times), "noised": c.noised, "predicted": c.predicted}


COMMANDS: dict[str, tuple[type[Options], Callable[..., Drawn] | None, str]] = {
    "vary": (VaryOptions, vary, "Draw anew what an embedding leaves open."),
    "blend": (BlendOptions, blend, "From one image to another, step by step."),
    "change": (ChangeOptions, change, "Move images from one text to another."),
    "mix": (MixOptions, mix, "Part one prompt, part another."),
    "inpaint": (InpaintOptions, inpaint, "Paint a part of images anew."),
    "probe": (ProbeOptions, probe, "Draw from few components of an embedding."),
    "corrupt": (CorruptOptions, corrupt, "Watch images drown in noise."),
    "lesson": (LessonOptions, None, "Three pictures that teach sampling."),
}


def command_types(sampling: dict[str, Sampling], style: str) -> Any:
    """A type for the parser: one of the commands, whose options have the defaults that it draws with."""
    commands = []
    for name, (kind, _, text) in COMMANDS.items():
        default = kind.of(sampling[name], style) if issubclass(kind, SamplingOptions) else kind()
        commands.append(Annotated[kind, tyro.conf.subcommand(name, default=default, description=text)])
    return Union[tuple(commands)]  # noqa: UP007


def heads(pipe: UnCLIP, o: Options) -> tuple[str, ...]:
    """Headings over the columns, one per image of a row."""
    if isinstance(o, ChangeOptions):
        return ("given", *(f"{amount:g}" for amount in o.amounts))
    if isinstance(o, ProbeOptions):
        return ("given", *(str(count) for count in o.components))
    if isinstance(o, CorruptOptions):
        return tuple(f"{t:.2f}" for t in pipe.decoder.process.spread_times(o.times))
    return ("given",) + ("",) * o.n if isinstance(o, (VaryOptions, InpaintOptions)) else ()


def with_originals(pipe: UnCLIP, files: tuple[Path, ...], drawn: np.ndarray) -> TensorBatch:
    """A row per image: as it was given, prepared, then what was drawn of it (N, K, H, W, C)."""
    given = edit.prepare_images(pipe, files)[:, None]
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


def main(argv: Sequence[str] | None = None) -> None:
    named = read_early_options(argv)
    checkpoint = Path(named.checkpoint) if named.checkpoint else newest_pipeline(Path("checkpoints"))
    own = read_sampling(find_pipeline(checkpoint))
    sampling = {name: own.override(**edit.DEFAULTS.get(name, {})) for name in COMMANDS}
    o = parse(command_types(sampling, named.style or "clear"), __doc__, argv=argv)
    if getattr(o, "images", None) == ():
        raise UserError("no image; give the files of some, like: python -m unclip.edit vary shoe.png")
    pipe = UnCLIP.from_pretrained(checkpoint, pick_device(o.device))
    o.out.mkdir(parents=True, exist_ok=True)
    if isinstance(o, LessonOptions):
        for path in lesson(pipe, o.caption, o.n, o.seed, o.out):
            print(path)
        return
    name, work = next((name, work) for name, (kind, work, _) in COMMANDS.items() if isinstance(o, kind))
    arguments = [given_settings(o, sampling[name], argv)] if isinstance(o, DrawingOptions) else []
    began = time.perf_counter()
    rows, arrays = work(pipe, o, *arguments)
    seconds = time.perf_counter() - began
    save_png(o.out / f"{name}.png", captioned_grid(rows, margin=150, columns=heads(pipe, o)))
    if o.npz:
        write_npz(o.out / f"{name}.npz", arrays)
    print(f"{seconds:.1f} s with {checkpoint}: {o.out / f'{name}.png'}")


def given_settings(o: DrawingOptions, sampling: Sampling, argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings to call a command with: those that differ from its own, and steps and guidance if they are given.

    Where `vary` keeps noise it draws with other steps and guidance by default, so that a value counts if it is given,
    even if it is the pipeline's own.
    """
    given = {name: getattr(o, name) for name in find_given(argv, ["steps", "guidance"])}
    return given | o.changed(sampling)

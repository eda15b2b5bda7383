"""Edit images through their embeddings: vary, blend, change, mix, inpaint, image to image, and look inside.

    unclip edit vary shoe.png --n 8 --out outputs/vary                    # new noise, same embedding
    unclip edit blend shoe.png boot.png --frames 8                        # also blend.gif
    unclip edit change coat.png --before "a dark coat" --after "a light coat" --amounts 0 0.25 0.5
    unclip edit mix --prompts "a sneaker" "an ankle boot" --weights 1 1
    unclip edit inpaint shoe.png --mask mask.png --caption "an ankle boot"    # white is painted
    unclip edit image-to-image shoe.png --caption "a bag" --strength 0.6
    unclip edit probe shoe.png bag.png --components 0 5 20 80
    unclip edit corrupt shoe.png --times 10
    unclip edit lesson                                                    # three pictures that teach sampling

Each writes a labelled picture named after the command into --out, and with --npz the arrays. Images are files of any
size; the middle square is taken. On two CPU cores a command takes some seconds, the lesson a minute or two.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union

import numpy as np
import tyro

from unclip import edit
from unclip.cli.options import given_settings, parse, read_early_options
from unclip.devices import pick_device
from unclip.edit.inversion import require_ability
from unclip.edit.lesson import draw_lesson
from unclip.errors import UserError, quantity
from unclip.grids import captioned_grid, save_gif
from unclip.images import save_png, to_pil
from unclip.interfaces import CanDenoise
from unclip.outputs import Output
from unclip.picture_text import describe_picture
from unclip.pipeline import UnCLIP
from unclip.settings import Device, Sampling, SamplingOptions
from unclip.store.array_files import write_npz
from unclip.store.hub import find_pipeline, is_hub_name
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
    """Options of the commands that draw with the decoder."""


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
    """Caption of the images as they are."""
    after: str = ""
    """Caption of the images as they are to become."""
    amounts: tuple[float, ...] = (0, 0.25, 0.5)
    """How far to go, each from 0 to 1."""
    space: edit.Space = "image"
    """Where the direction is taken: text, between the embeddings of the two captions; image, between the image
    embeddings that the prior's linear map makes of them."""


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
    """File of an image, white or else transparent where to paint."""
    caption: str | None = None
    """Caption of the painted images (default: none, their own embedding is kept)."""
    n: int = 4
    """Paintings per image."""
    seed: int = 0
    """Painting i of every image uses seed + i."""


@dataclass(frozen=True)
class ImageToImageOptions(DrawingOptions):
    images: Images = ()
    """Files of images."""
    caption: str | None = None
    """Caption of the new images (default: none, the images' own embeddings are kept)."""
    strength: float = 0.8
    """How much changes: 0 nothing, 1 all."""
    negative: str | None = None
    """Caption that guidance leads away from."""
    n: int = 4
    """New versions of each image."""
    seed: int = 0
    """Version i of every image uses seed + i."""


@dataclass(frozen=True)
class ProbeOptions(DrawingOptions):
    images: Images = ()
    """Files of images."""
    components: tuple[int, ...] = (0, 5, 20, 80)
    """How many principal components to keep."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class CorruptOptions(Options):
    images: Images = ()
    """Files of images."""
    times: int = 10
    """Moments of the forward process."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class LessonOptions(Options):
    caption: str = ""
    """Caption to draw (default: images of the data's own kinds, as the prior draws them without a caption)."""
    n: int = 8
    """Images per row."""
    seed: int = 0
    """Image i of every row uses seed + i."""


LabelledRows = list[tuple[str, np.ndarray]]
Drawn = tuple[LabelledRows, dict[str, np.ndarray]]
"""Rows of images with their labels, and the arrays for --npz."""


def vary(pipe: UnCLIP, options: VaryOptions, settings: dict[str, Any]) -> Drawn:
    output = edit.vary(pipe, options.images, options.n, options.seed, options.keep, **settings)
    return with_originals(pipe, options.images, per_image(output, options.n)), arrays_of(output)


def blend(pipe: UnCLIP, options: BlendOptions, settings: dict[str, Any]) -> Drawn:
    if len(options.images) != 2:
        raise UserError(f"blend takes two images, not {len(options.images)}")
    frames = edit.blend(pipe, *options.images, options.frames, **settings)
    there_and_back = [*frames, *frames[-2::-1]]
    save_gif(options.out / "blend.gif", [to_pil(frame, 168) for frame in there_and_back], 120)
    return [(" to ".join(image.stem for image in options.images), frames)], {"images": frames}


def change(pipe: UnCLIP, options: ChangeOptions, settings: dict[str, Any]) -> Drawn:
    if not options.before or not options.after:
        raise UserError("change needs --before and --after, two captions")
    images = edit.change(
        pipe, options.images, options.before, options.after, options.amounts, options.space, **settings
    )
    return with_originals(pipe, options.images, images), {"images": images, "amounts": np.array(options.amounts)}


def mix(pipe: UnCLIP, options: MixOptions, settings: dict[str, Any]) -> Drawn:
    weights = options.weights or (1.0,) * len(options.prompts)
    if len(weights) != len(options.prompts):
        counts = f"{quantity(len(weights), 'weight')} cannot go with {quantity(len(options.prompts), 'prompt')}"
        raise UserError(f"{counts}; give as many of each")
    output = edit.mix(pipe, dict(zip(options.prompts, weights, strict=True)), options.n, options.seed, **settings)
    return [(output.captions[0], output.images)], arrays_of(output)


def inpaint(pipe: UnCLIP, options: InpaintOptions, settings: dict[str, Any]) -> Drawn:
    if options.mask is None:
        raise UserError("inpaint needs --mask, an image that is white where to paint")
    output = edit.inpaint(pipe, options.images, options.mask, options.caption, options.n, options.seed, **settings)
    return with_originals(pipe, options.images, per_image(output, options.n)), arrays_of(output)


def image_to_image(pipe: UnCLIP, options: ImageToImageOptions, settings: dict[str, Any]) -> Drawn:
    arguments = (options.caption, options.strength, options.n, options.seed, options.negative)
    output = edit.image_to_image(pipe, options.images, *arguments, **settings)
    return with_originals(pipe, options.images, per_image(output, options.n)), arrays_of(output)


def probe(pipe: UnCLIP, options: ProbeOptions, settings: dict[str, Any]) -> Drawn:
    images = edit.probe(pipe, options.images, options.components, options.seed, **settings)
    return with_originals(pipe, options.images, images), {"images": images, "components": np.array(options.components)}


def corrupt(pipe: UnCLIP, options: CorruptOptions) -> Drawn:
    corrupted = edit.corrupt(pipe, options.images, options.times, options.seed)
    rows = []
    for image, noised, predicted in zip(options.images, corrupted.noised, corrupted.predicted, strict=True):
        rows += [(f"{image.stem}: x_t", noised), ("predicted in one step", predicted)]
    arrays = {"times": np.array(corrupted.times), "noised": corrupted.noised, "predicted": corrupted.predicted}
    return rows, arrays


COMMANDS: dict[str, tuple[type[Options], Any, str]] = {
    "vary": (VaryOptions, vary, "Draw variations: new noise, the same embedding."),
    "blend": (BlendOptions, blend, "Draw a path from one image to another."),
    "change": (ChangeOptions, change, "Move images in the direction from one text to another."),
    "mix": (MixOptions, mix, "Draw images of several prompts at once."),
    "inpaint": (InpaintOptions, inpaint, "Paint a part of images anew."),
    "image-to-image": (ImageToImageOptions, image_to_image, "Noise images by a share, and denoise them to a caption."),
    "probe": (ProbeOptions, probe, "Draw images from a few components of their embedding."),
    "corrupt": (CorruptOptions, corrupt, "Show the forward process, and what the decoder predicts at each moment."),
    "lesson": (LessonOptions, None, "Draw three pictures that teach sampling."),
}


def command_types(sampling: dict[str, Sampling], style: str) -> Any:
    """A type for the parser: one of the commands, whose options have the defaults that it draws with."""
    commands = []
    for name, (kind, _, text) in COMMANDS.items():
        default = kind.of(sampling[name], style) if issubclass(kind, SamplingOptions) else kind()
        commands.append(Annotated[kind, tyro.conf.subcommand(name, default=default, description=text)])
    return Union[tuple(commands)]  # noqa: UP007


def column_headings(pipe: UnCLIP, options: Options) -> tuple[str, ...]:
    """Headings of the columns, one per image of a row, or none."""
    if isinstance(options, ChangeOptions):
        return ("given", *(f"{amount:g}" for amount in options.amounts))
    if isinstance(options, ProbeOptions):
        return ("given", *(str(count) for count in options.components))
    if isinstance(options, CorruptOptions):
        decoder = require_ability(pipe, CanDenoise, "denoise step by step")
        return tuple(f"{t:.2f}" for t in decoder.process.spread_times(options.times))
    return (
        ("given",) + ("",) * options.n
        if isinstance(options, (VaryOptions, InpaintOptions, ImageToImageOptions))
        else ()
    )


def with_originals(pipe: UnCLIP, files: tuple[Path, ...], drawn: np.ndarray) -> LabelledRows:
    """A row per image: the prepared image, then what was drawn from it (N, K, H, W, C)."""
    originals = edit.prepare_images(pipe, files)[:, None]
    rows = np.concatenate([originals, drawn], axis=1)
    return [(file.stem, row) for file, row in zip(files, rows, strict=True)]


def per_image(output: Output, n: int) -> np.ndarray:
    """The images of an output, n for each original: (N, n, H, W, C)."""
    return output.images.reshape(-1, n, *output.images.shape[1:])


def arrays_of(output: Output) -> dict[str, np.ndarray]:
    """The arrays of an output for --npz."""
    return {
        "images": output.images,
        "captions": np.array(output.captions),
        "seeds": np.array(output.seeds),
        "embeddings": output.embeddings.cpu().numpy(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    named = read_early_options(argv)
    checkpoint = Path(named.checkpoint) if named.checkpoint else newest_pipeline(Path("checkpoints"))
    folder = find_pipeline(checkpoint)
    stored = read_sampling(folder)
    sampling = {name: stored.override(**edit.DEFAULTS.get(name.replace("-", "_"), {})) for name in COMMANDS}
    options = parse(command_types(sampling, named.style or "clear"), __doc__, argv=argv)
    if getattr(options, "images", None) == ():
        raise UserError("no image; give the files of some, like: unclip edit vary shoe.png")
    if not named.checkpoint:
        print(f"drawing with {checkpoint}; name another pipeline with --checkpoint DIR", flush=True)
    pipe = UnCLIP.from_pretrained(folder, pick_device(options.device))
    if is_hub_name(checkpoint):
        pipe.origin["name"] = str(checkpoint)
    options.out.mkdir(parents=True, exist_ok=True)
    if isinstance(options, LessonOptions):
        text = picture_text(pipe, "lesson", options, pipe.sampling, [])
        for path in draw_lesson(pipe, options.caption, options.n, options.seed, options.out, text):
            print(path)
        return
    name, work = next((name, work) for name, (kind, work, _) in COMMANDS.items() if isinstance(options, kind))
    arguments = [given_settings(argv, options, sampling[name])] if isinstance(options, DrawingOptions) else []
    began = time.perf_counter()
    rows, arrays = work(pipe, options, *arguments)
    seconds = time.perf_counter() - began
    picture = captioned_grid(rows, margin=150, columns=column_headings(pipe, options))
    defaults = sampling["blend" if getattr(options, "keep", 0) else name]
    save_png(options.out / f"{name}.png", picture, text=picture_text(pipe, name, options, defaults, arguments))
    if options.npz:
        write_npz(options.out / f"{name}.npz", arrays)
    print(f"{seconds:.1f} s with {checkpoint}: {options.out / f'{name}.png'}")


def picture_text(
    pipe: UnCLIP, name: str, options: Options, sampling: Sampling, settings: list[dict[str, Any]]
) -> dict[str, str]:
    """Text for a command's picture: the settings that it draws with, and its own options."""
    general = {item.name for kind in (SamplingOptions, Options) for item in fields(kind)}
    special = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in general}
    captions = [special[option] for option in ("caption", "before", "after") if special.get(option)]
    captions += special.get("prompts", ())
    seeds = range(special["seed"], special["seed"] + special.get("n", 1)) if "seed" in special else ()
    drawn_with = sampling.for_drawing(**settings[0]) if settings else sampling
    return describe_picture(pipe, captions, seeds, drawn_with, edit={"command": name, **special})

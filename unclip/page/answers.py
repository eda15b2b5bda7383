"""What the page's buttons do: plain functions of an opened pipeline and what a visitor entered.

They yield tuples of what is to be shown, some of them several times as the drawing goes on. They keep nothing between
calls, so visitors cannot meet. Raises of UserError become one line on the page.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unclip import edit
from unclip.errors import UserError
from unclip.grids import captioned_grid
from unclip.images import to_pil
from unclip.page.markup import LARGE, picture, png_bytes, row, saved_as_gif, saved_as_png, sheet, table
from unclip.page.shelf import OpenPipeline
from unclip.store.files import write_atomically
from unclip.trajectory import Moment, Trajectory, denoising_frames, watch_drawing

MAX_PICTURES = 64
"""Pictures per click."""
FRAMES = 9
"""Of a blend, and of an edit."""
INVERSION = {"steps": 20}
"""Of what needs an image's own noise: it is given back to within a few grey levels, and nobody waits for long."""
FURTHEST = 0.5
"""Of an edit; the paper goes no further, and at 1 nothing is left of the image."""
SIDE = 336
"""About how wide the canvas for the brush is, in pixels."""
PARTS = {
    "the upper half": (slice(0, 1), slice(0, 2)),
    "the lower half": (slice(1, 2), slice(0, 2)),
    "the left half": (slice(0, 2), slice(0, 1)),
    "the right half": (slice(0, 2), slice(1, 2)),
    "everything": (slice(0, 2), slice(0, 2)),
}
"""What can be painted anew without a brush: rows and columns of the image's quarters."""

Shown = Iterator[tuple[Any, ...]]
Picked = str | Path | None
"""The file of an image that a visitor gave, if one did."""


def draw(opened: OpenPipeline, text: str, n: int, seed: int, guidance: float, steps: int) -> Shown:
    """A row of pictures per caption, denoised before the visitor's eyes, one caption after the other."""
    captions = captions_in(text)
    if len(captions) * n > MAX_PICTURES:
        raise UserError(f"{len(captions) * n} pictures are more than the {MAX_PICTURES} of one click; ask for fewer")
    trajectory, rows, drawn = Trajectory(), [], []
    for caption in captions:
        settings = {"n": n, "seed": seed, "guidance": guidance, "steps": steps}
        for told in watch_drawing(lambda on_step: opened.pipe(caption, on_step=on_step, **settings)):  # noqa: B023
            if isinstance(told, Moment):
                trajectory(told)
                yield (sheet(*rows, row(caption, [picture(x, f"{caption}, being drawn") for x in told.x])),)
        drawn.append((caption, told.images))
        rows.append(row(caption, numbered(caption, told.images, told.seeds)))
        yield (sheet(*rows),)
    frames = denoising_frames([caption for caption in captions for _ in range(n)], trajectory, n)
    yield (sheet(*rows, saved_as_png(captioned_grid(drawn), "grid"), saved_as_gif(frames, "denoising")),)


def command(folder: str, text: str, n: int, seed: int, guidance: float, steps: int) -> str:
    """The command line that draws the same."""
    options = {"checkpoint": folder, "n": n, "seed": seed, "guidance": guidance, "steps": steps}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    captions = text_lines(text)
    end = ["--"] if any(caption.startswith("-") for caption in captions) else []  # what follows is no option
    return shlex.join(["python", "sample.py", *words, *end, *captions])


def vary(opened: OpenPipeline, image: Picked, n: int, seed: int, keep: float) -> Shown:
    """What the image's embedding leaves open."""
    varied = edit.vary(opened.pipe, picked(image), n=n, seed=seed, keep=keep, **INVERSION if keep else {})
    yield (several("variation", varied.images, varied.seeds),)


def blend(opened: OpenPipeline, first: Picked, second: Picked, position: float) -> Shown:
    """Frames from one image to another, the one at `position`, and all of them."""
    frames = edit.blend(opened.pipe, picked(first), picked(second), frames=FRAMES, **INVERSION)
    yield frames, frame_at(frames, position), film("blend", frames)


def change(opened: OpenPipeline, image: Picked, before: str, after: str, position: float) -> Shown:
    """The image moved from what one caption says towards what another says: to `position`, which is soon there, then by
    more and more."""
    if not before.strip() or not after.strip():
        raise UserError("an edit needs two captions: what the image shows before, and what it shall show after")
    given = picked(image)
    moved = edit.change(opened.pipe, given, before, after, [position], **INVERSION)[0]
    yield None, frame_at(moved, position, FURTHEST), ""
    amounts = np.linspace(0, FURTHEST, FRAMES).tolist()
    frames = edit.change(opened.pipe, given, before, after, amounts, **INVERSION)[0]
    yield frames, frame_at(frames, position, FURTHEST), film(after, frames, FURTHEST)


def mix(opened: OpenPipeline, n: int, seed: int, *prompts_and_weights: str | float) -> Shown:
    """Pictures that are part one prompt and part another; prompts and weights take turns."""
    weights: dict[str, float] = {}
    for prompt, weight in zip(prompts_and_weights[::2], prompts_and_weights[1::2], strict=True):
        if prompt.strip():
            weights[prompt.strip()] = weights.get(prompt.strip(), 0) + weight
    mixed = edit.mix(opened.pipe, weights, n=n, seed=seed)
    yield (several("mix", mixed.images, mixed.seeds),)


def inpaint(
    opened: OpenPipeline, image: Picked, painting: dict[str, Any] | None, part: str, caption: str, n: int, seed: int
) -> Shown:
    """The image with a part of it painted anew: what the brush went over on the canvas, or else a named part."""
    prepared = edit.prepare_images(opened.pipe, picked(image))
    mask = mask_of(painting, part, prepared.shape[1])
    painted = []
    for one in range(seed, seed + n):
        painted.append(edit.inpaint(opened.pipe, prepared, mask, captions_in(caption)[0], seed=one).images[0])
        yield (several("inpainting", np.stack(painted), range(seed, one + 1)),)


def look(opened: OpenPipeline, caption: str, seed: int, image: Picked) -> Shown:
    """What the prior drew for a caption, and what the decoder makes of that and of less.

    The ways to drive the decoder are those of the evaluation's error budget (Ramesh et al. 2022, section 5.1); of a
    true embedding it can be told only where an image is given.
    """
    pipe, caption = opened.pipe, captions_in(caption)[0]
    text, drawn = pipe.encode_text(caption), pipe.embed(caption, seed=seed)
    ways = {"true embedding": (pipe.encode_image(picked(image)), caption)} if image else {}
    ways |= {"prior": (drawn, caption), "text embedding": (text, caption)}
    ways |= {"caption alone": (None, caption), "nothing": (None, "")}
    pictures = []
    for way, (embedding, said) in ways.items():
        made = pipe.decode(embedding, [said], seed=seed, num_candidates=1)  # all from the same noise
        pictures.append(picture(made[0], f"{caption}, from {way}", way, f"{caption} from {way}.png"))
        yield (sheet(row("Drawn from", pictures)),)
    cosines = [
        (way, f"{float(embedding @ text.T):.2f}", f"{float(embedding @ drawn.T):.2f}")
        for way, (embedding, _) in ways.items()
        if embedding is not None
    ]
    near = (opened.text @ drawn[0]).topk(min(8, len(opened.captions)))
    ranked = [(opened.captions[i], f"{cosine:.2f}") for cosine, i in zip(near.values, near.indices, strict=True)]
    yield (
        sheet(
            row("Drawn from", pictures),
            table(("Cosine of the", "with the caption's text", "with the prior's draw"), cosines),
            table(("Training captions nearest to the prior's draw", "cosine"), ranked),
        ),
    )


def text_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def captions_in(text: str) -> list[str]:
    """The captions in a text, one per line. Raises UserError if there are none."""
    if captions := text_lines(text):
        return captions
    raise UserError("no caption; write one per line")


def picked(file: Picked) -> Image.Image:
    """The image in a file. Raises UserError if there is none, or none that can be read."""
    if file is None:
        raise UserError("no image; drop one on the page, or click an example")
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise UserError("this file is no image that can be read; choose another, such as a PNG or a JPEG") from error
    return image


def several(name: str, images: np.ndarray, seeds: Sequence[int]) -> str:
    """Pictures (n, H, W, C) with their seeds, to be saved one by one or together."""
    return sheet(row("", numbered(name, images, seeds)), saved_as_png(captioned_grid([(name, images)]), name))


def numbered(name: str, images: np.ndarray, seeds: Sequence[int]) -> list[str]:
    return [
        picture(image, f"{name}, seed {seed}", f"seed {seed}", f"{name} seed {seed}.png")
        for image, seed in zip(images, seeds, strict=True)
    ]


def film(name: str, frames: np.ndarray, end: float = 1) -> str:
    """All frames (F, H, W, C), at 0 .. end, side by side; to be saved one by one, together, or as an animation."""
    at = [f"{position:.3g}" for position in np.linspace(0, end, len(frames))]
    pictures = [picture(f, f"{name} at {a}", a, f"{name} {a}.png", height=84) for f, a in zip(frames, at, strict=True)]
    links = saved_as_png(captioned_grid([(name, frames)]), name)
    return sheet(row("", pictures), links, saved_as_gif([to_pil(frame, LARGE) for frame in frames], name))


def frame_at(frames: np.ndarray | None, position: float, end: float = 1) -> str:
    """The frame at a position from 0, the first, to `end`, the last; nothing before there are any."""
    if frames is None:
        return ""
    return sheet(picture(frames[round(position / end * (len(frames) - 1))], f"at {position:.3g}", height=LARGE))


def mask_of(painting: dict[str, Any] | None, part: str, size: int) -> np.ndarray:
    """Where to paint, bool (size, size): what the brush touched; where that is nothing, the named part."""
    layers = [layer.convert("RGBA").getchannel("A") for layer in (painting and painting["layers"]) or () if layer]
    brushed = [np.asarray(layer.resize((size, size), Image.Resampling.BOX)) > 0 for layer in layers]
    if np.any(brushed):
        return np.any(brushed, axis=0)
    quarters = np.zeros((2, 2), bool)
    quarters[PARTS[part]] = True
    return quarters.repeat(size // 2, axis=0).repeat(size // 2, axis=1)


def canvas(opened: OpenPipeline, image: Picked) -> str | None:
    """An image as the decoder sees it, enlarged, so that there is room for a brush: a file beside that of the image.

    Nothing if the image cannot be read, which is told when it is asked for. The file is written as a whole, as another
    visitor's browser may be fetching the same one.
    """
    try:
        prepared = edit.prepare_images(opened.pipe, picked(image))[0]
    except UserError:
        return None
    file = Path(image).with_name(f"canvas-{'x'.join(map(str, prepared.shape))}.png")
    if not file.exists():
        write_atomically(file, png_bytes(to_pil(prepared, SIDE)))
    return str(file)

"""Answer the page's buttons: plain functions of an opened pipeline and a visitor's inputs.

They yield tuples of outputs to show, some of them repeatedly while the drawing goes on. They keep no state between
calls, so visitors do not affect each other. A UserError becomes one line on the page.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unclip import edit
from unclip.errors import UserError, shown
from unclip.grids import captioned_grid
from unclip.images import to_pil
from unclip.page.markup import LARGE, gif_link, picture, png_link, row, sheet, table
from unclip.page.pictures import PickedFile, open_picked
from unclip.page.shelf import OpenPipeline
from unclip.page.values import read_text
from unclip.picture_text import describe_picture
from unclip.trajectory import Moment, Trajectory, denoising_frames, watch_drawing

MAX_PICTURES = 64
"""Pictures per click."""
LONGEST_TEXT = 20_000
"""Letters of all captions of a click together."""
MAX_STEPS = 16 * 100
"""Steps of all pictures of a click together."""
MOMENTS = 40
"""Moments of the denoising that are shown per click: each is sent with all pictures that were drawn before."""
FRAMES = 9
"""Frames of a blend or an edit."""
INVERSION: dict[str, Any] = {"steps": 20}
"""Settings of edits that keep an image's own noise: the image comes back to within a few grey levels, and quickly."""
FURTHEST = 0.5
"""Largest amount of an edit. The paper goes no further, and at 1 nothing of the image is left."""
SIDE = 336
"""Approximate width of the brush's canvas, in pixels."""
PARTS = {
    "the upper half": (slice(0, 1), slice(0, 2)),
    "the lower half": (slice(1, 2), slice(0, 2)),
    "the left half": (slice(0, 2), slice(0, 1)),
    "the right half": (slice(0, 2), slice(1, 2)),
    "everything": (slice(0, 2), slice(0, 2)),
}
"""Parts that can be painted without a brush: rows and columns of the image's quarters."""

Shown = Iterator[tuple[Any, ...]]


def draw(opened: OpenPipeline, text: str, n: int, seed: int, guidance: float, steps: int) -> Shown:
    """Show a row of pictures per caption while they are denoised, one caption after the other."""
    captions = parse_captions(text)
    count = len(captions) * n
    if count > MAX_PICTURES:
        raise UserError(f"{count} pictures are more than the {MAX_PICTURES} of one click; ask for fewer")
    if count * steps > MAX_STEPS:
        raise UserError(
            f"{count} pictures of {steps} steps are {count * steps} steps, more than the {MAX_STEPS} of one click; "
            "ask for fewer pictures or steps"
        )
    stride = math.ceil(len(captions) * steps / MOMENTS)
    settings: dict[str, Any] = {"n": n, "seed": seed, "guidance": guidance, "steps": steps}
    sampling = opened.pipe.sampling.for_drawing(guidance=guidance, steps=steps)
    trajectory = Trajectory()
    rows: list[str] = []
    drawn: list[tuple[str, np.ndarray]] = []
    output: Any = None
    for caption in captions:
        for event in watch_drawing(lambda on_step: opened.pipe(caption, on_step=on_step, **settings)):  # noqa: B023
            if isinstance(event, Moment):
                trajectory(event)
                if event.step % stride:
                    continue
                yield (sheet(*rows, row(caption, [picture(x, f"{caption}, being drawn") for x in event.x])),)
            else:
                output = event
        drawn.append((caption, output.images))
        told = describe_picture(opened.pipe, [caption], (), sampling)
        rows.append(row(caption, pictures_with_seeds(caption, output.images, output.seeds, told)))
        yield (sheet(*rows),)
    frames = denoising_frames([caption for caption in captions for _ in range(n)], trajectory, n)
    told = describe_picture(opened.pipe, captions, range(seed, seed + n), sampling)
    yield (sheet(*rows, png_link(captioned_grid(drawn), "grid", told), gif_link(frames, "denoising")),)


def sample_command(folder: str, text: str, n: int, seed: int, guidance: float, steps: int) -> str:
    """The command line that draws the same pictures as `draw`."""
    options = {"checkpoint": folder, "n": n, "seed": seed, "guidance": guidance, "steps": steps}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    captions = split_lines(text)
    if any(caption.startswith("-") for caption in captions):
        words.append("--")  # all that follows is a caption
    return shlex.join(["python", "sample.py", *words, *captions])


def vary(opened: OpenPipeline, image: PickedFile, n: int, seed: int, keep: float) -> Shown:
    """Draw variations of an image."""
    varied = edit.vary(opened.pipe, open_picked(image), n=n, seed=seed, keep=keep, **INVERSION if keep else {})
    text = describe_edit(opened, "vary", [], edit.DEFAULTS["blend"] | INVERSION if keep else {}, keep=keep)
    yield (seeds_sheet("variation", varied.images, varied.seeds, text),)


def blend(opened: OpenPipeline, first: PickedFile, second: PickedFile, position: float) -> Shown:
    """Draw frames from one image to another: all of them, and the one at `position` enlarged."""
    frames = edit.blend(opened.pipe, open_picked(first), open_picked(second), frames=FRAMES, **INVERSION)
    text = describe_edit(opened, "blend", [], INVERSION, frames=FRAMES)
    yield frames, frame_at(frames, position), frames_sheet("blend", frames, text)


def change(opened: OpenPipeline, image: PickedFile, before: str, after: str, position: float) -> Shown:
    """Move an image from one caption towards another: first to `position`, which is quick, then step by step."""
    if not before.strip() or not after.strip():
        raise UserError("an edit needs two captions: one for the image as it is, and one for the result")
    source = open_picked(image)
    moved = edit.change(opened.pipe, source, before, after, [position], **INVERSION)[0]
    yield None, frame_at(moved, position, FURTHEST), ""
    amounts = np.linspace(0, FURTHEST, FRAMES).tolist()
    frames = edit.change(opened.pipe, source, before, after, amounts, **INVERSION)[0]
    text = describe_edit(opened, "change", [before, after], INVERSION, amounts=amounts)
    yield frames, frame_at(frames, position, FURTHEST), frames_sheet(after, frames, text, FURTHEST)


def mix(opened: OpenPipeline, n: int, seed: int, *prompts_and_weights: Any) -> Shown:
    """Draw pictures of weighted prompts; prompts and weights alternate in the arguments."""
    weights: dict[str, float] = {}
    for prompt, weight in zip(prompts_and_weights[::2], prompts_and_weights[1::2], strict=True):
        prompt = prompt.strip()
        if prompt:
            weights[prompt] = weights.get(prompt, 0) + weight
    mixed = edit.mix(opened.pipe, weights, n=n, seed=seed)
    text = describe_edit(opened, "mix", list(weights), {}, weights=list(weights.values()))
    yield (seeds_sheet("mix", mixed.images, mixed.seeds, text),)


def inpaint(
    opened: OpenPipeline, image: PickedFile, strokes: PickedFile, part: str, caption: str, n: int, seed: int
) -> Shown:
    """Paint a part of an image: the part under the brush strokes, or else a named part."""
    prepared = edit.prepare_images(opened.pipe, open_picked(image))
    text = describe_edit(opened, "inpaint", parse_captions(caption)[:1], {})
    mask = painting_mask(open_picked(strokes) if strokes else None, part, prepared.shape[1])
    painted = []
    for image_seed in range(seed, seed + n):
        output = edit.inpaint(opened.pipe, prepared, mask, parse_captions(caption)[0], seed=image_seed)
        painted.append(output.images[0])
        yield (seeds_sheet("inpainting", np.stack(painted), range(seed, image_seed + 1), text),)


def look_inside(opened: OpenPipeline, caption: str, seed: int, image: PickedFile) -> Shown:
    """Show the prior's embedding of a caption, and pictures that the decoder draws from it and from less.

    The decoder is driven in the ways of the evaluation's error budget (Ramesh et al. 2022, section 5.1), by a true
    embedding only if an image is picked.
    """
    pipe = opened.pipe
    caption = parse_captions(caption)[0]
    text = pipe.encode_text(caption)
    drawn = pipe.embed(caption, seed=seed)
    inputs = {"true embedding": (pipe.encode_image(open_picked(image)), caption)} if image else {}
    inputs |= {"prior": (drawn, caption), "text embedding": (text, caption)}
    inputs |= {"caption alone": (None, caption), "nothing": (None, "")}
    pictures = []
    for name, (embedding, decoder_caption) in inputs.items():
        images = pipe.decode(embedding, [decoder_caption], seed=seed, num_candidates=1)  # all from the same noise
        told = describe_picture(pipe, [caption], [seed], pipe.sampling.for_drawing(num_candidates=1), drawn_from=name)
        file = f"{caption} from {name}.png"
        pictures.append(picture(images[0], f"{caption}, from {name}", name, file, text=told))
        yield (sheet(row("Drawn from", pictures)),)
    cosines = [
        (name, f"{float(embedding @ text.T):.2f}", f"{float(embedding @ drawn.T):.2f}")
        for name, (embedding, _) in inputs.items()
        if embedding is not None
    ]
    nearest = (opened.text_embeddings @ drawn[0]).topk(min(8, len(opened.captions)))
    ranked = [(opened.captions[i], f"{cosine:.2f}") for cosine, i in zip(nearest.values, nearest.indices, strict=True)]
    yield (
        sheet(
            row("Drawn from", pictures),
            table(("Cosine of the", "with the caption's text", "with the prior's embedding"), cosines),
            table(("Training captions nearest to the prior's embedding", "cosine"), ranked),
        ),
    )


def split_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_captions(text: str) -> list[str]:
    """The captions in a text, one per line. Raises UserError if there are none."""
    captions = [read_text(line, "a caption") for line in split_lines(text)]
    if not captions:
        raise UserError("no caption; write one per line")
    return captions


def describe_edit(
    opened: OpenPipeline, name: str, captions: Sequence[str], settings: dict[str, Any], **others: Any
) -> dict[str, str]:
    """Text for the pictures of an edit, which says how they were drawn."""
    sampling = opened.pipe.sampling.for_drawing(**edit.DEFAULTS[name] | settings)
    return describe_picture(opened.pipe, captions, (), sampling, edit={"command": name, **others})


def seeds_sheet(name: str, images: np.ndarray, seeds: Sequence[int], text: dict[str, str]) -> str:
    """Pictures (n, H, W, C) with their seeds; each can be saved, or all together, with text."""
    grid = png_link(captioned_grid([(name, images)]), name, text | {"seed": str(list(seeds))})
    return sheet(row("", pictures_with_seeds(name, images, seeds, text)), grid)


def pictures_with_seeds(name: str, images: np.ndarray, seeds: Sequence[int], text: dict[str, str]) -> list[str]:
    return [
        picture(
            image, f"{name}, seed {seed}", f"seed {seed}", f"{name} seed {seed}.png", text=text | {"seed": str(seed)}
        )
        for image, seed in zip(images, seeds, strict=True)
    ]


def frames_sheet(name: str, frames: np.ndarray, text: dict[str, str], end: float = 1) -> str:
    """Frames (F, H, W, C) from 0 to `end` side by side; each can be saved, or all together, or as an animation."""
    labels = [f"{position:.3g}" for position in np.linspace(0, end, len(frames))]
    pictures = [
        picture(frame, f"{name} at {label}", label, f"{name} {label}.png", height=84, text=text)
        for frame, label in zip(frames, labels, strict=True)
    ]
    still = png_link(captioned_grid([(name, frames)]), name, text)
    animation = gif_link([to_pil(frame, LARGE) for frame in frames], name)
    return sheet(row("", pictures), still, animation)


def frame_at(frames: np.ndarray | None, position: float, end: float = 1) -> str:
    """The frame at a position from 0 (the first) to `end` (the last); nothing before there are frames."""
    if frames is None:
        return ""
    index = round(position / end * (len(frames) - 1))
    return sheet(picture(frames[index], f"at {position:.3g}", height=LARGE))


def painting_mask(strokes: Image.Image | None, part: str, size: int) -> np.ndarray:
    """Where to paint, bool (size, size): under the brush strokes, or the named part if there are none."""
    if strokes:
        opaque = strokes.convert("RGBA").getchannel("A")
        brushed = np.asarray(opaque.resize((size, size), Image.Resampling.BOX)) > 0
        if brushed.any():
            return brushed
    if part not in PARTS:
        raise UserError(f"there is no part {shown(part)}; choose from {', '.join(PARTS)}")
    quarters = np.zeros((2, 2), bool)
    quarters[PARTS[part]] = True
    half = np.arange(size) * 2 // size  # 0 for the first half of the rows or columns, 1 for the second
    return quarters[half][:, half]


def draw_canvas(opened: OpenPipeline, image: PickedFile) -> Image.Image | None:
    """The image as the decoder sees it, enlarged to leave room for a brush.

    Returns None for an image that cannot be read; the button then reports it.
    """
    try:
        return to_pil(edit.prepare_images(opened.pipe, open_picked(image))[0], SIDE)
    except UserError:
        return None

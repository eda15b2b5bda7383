"""Answer the buttons that edit images: plain functions of an opened pipeline and a visitor's values, see drawing.py."""

import base64
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from unclip import edit
from unclip.errors import UserError, shown
from unclip.grids import captioned_grid
from unclip.images import to_pil
from unclip.page.drawing import Shown, check_cost, seeds_sheet
from unclip.page.markup import brush_canvas, finished_picture, gif_link, links, png_link, row, sheet, slider
from unclip.page.pictures import PickedFile, open_picked
from unclip.page.shelf import OpenPipeline
from unclip.page.values import parse_captions
from unclip.page.watching import Finished, Progress, active_settings, expected_steps, watch
from unclip.picture_text import describe_picture

FRAMES = 9
"""Frames of a blend or an edit."""
INVERSION: dict[str, Any] = {"steps": 20}
"""Settings of edits that keep an image's own noise: the image comes back to within a few grey levels, and quickly."""
INVERTING_STEPS = 3 * INVERSION["steps"] + 2
"""Calls of the decoder for an edit: two per step of the inversion and two more, and one per step of the drawing."""
PAINTING_STEPS = 4 * edit.DEFAULTS["inpaint"]["steps"] - 3
"""The same for inpainting, which takes each step but the last four times."""
FURTHEST = 0.5
"""Largest amount of an edit. The paper goes no further, and at 1 nothing of the image is left."""
AMOUNTS = tuple(np.linspace(0, FURTHEST, FRAMES).tolist())
LONGEST_STROKES = 200_000
"""Letters of the brush's strokes."""
LARGE = 280
"""Approximate height of the frames of an animation, in pixels."""
PARTS = {
    "the upper half": (slice(0, 1), slice(0, 2)),
    "the lower half": (slice(1, 2), slice(0, 2)),
    "the left half": (slice(0, 2), slice(0, 1)),
    "the right half": (slice(0, 2), slice(1, 2)),
    "everything": (slice(0, 2), slice(0, 2)),
}
"""Parts that can be painted without a brush: rows and columns of the image's quarters."""


def vary(opened: OpenPipeline, image: PickedFile, n: int, seed: int, keep: float, **settings: Any) -> Shown:
    """Draw variations of an image."""
    pipe = opened.pipe
    picked = open_picked(image)
    settings = settings | (INVERSION if keep else {})
    sampling = pipe.sampling.for_drawing(**(edit.DEFAULTS["blend"] if keep else {}) | settings)
    steps = INVERTING_STEPS if keep else expected_steps(pipe, sampling, n)
    varied = yield from progress_of(lambda: edit.vary(pipe, picked, n=n, seed=seed, keep=keep, **settings), steps)
    text = describe_picture(pipe, [], (), sampling, edit={"command": "vary", "keep": keep})
    yield seeds_sheet("variation", varied.images, varied.seeds, text)


def blend(opened: OpenPipeline, image: PickedFile, second: PickedFile) -> Shown:
    """Draw frames from one image to another."""
    first_image = open_picked(image)
    second_image = open_picked(second)
    steps = INVERTING_STEPS
    work = lambda: edit.blend(opened.pipe, first_image, second_image, frames=FRAMES, **INVERSION)  # noqa: E731
    frames = yield from progress_of(work, steps)
    text = describe_edit(opened, "blend", [], INVERSION, frames=FRAMES)
    yield frames_sheet("blend", "Position", frames, np.linspace(0, 1, FRAMES).tolist(), text)


def change(opened: OpenPipeline, image: PickedFile, before: str, after: str) -> Shown:
    """Move an image from one caption towards another, step by step."""
    if not before.strip() or not after.strip():
        raise UserError("an edit needs two captions: one for the image as it is, and one for the result")
    source = open_picked(image)
    work = lambda: edit.change(opened.pipe, source, before, after, AMOUNTS, **INVERSION)[0]  # noqa: E731
    frames = yield from progress_of(work, INVERTING_STEPS)
    text = describe_edit(opened, "change", [before, after], INVERSION, amounts=AMOUNTS)
    yield frames_sheet(after, "Amount", frames, AMOUNTS, text)


def mix(
    opened: OpenPipeline, prompt_1: str, weight_1: float, prompt_2: str, weight_2: float, prompt_3: str,
    weight_3: float, n: int, seed: int, **settings: Any
) -> Shown:  # fmt: skip
    """Draw pictures of weighted prompts."""
    pipe = opened.pipe
    weights = summed_weights([(prompt_1, weight_1), (prompt_2, weight_2), (prompt_3, weight_3)])
    sampling = pipe.sampling.for_drawing(**edit.DEFAULTS["mix"] | settings)
    active = active_settings(pipe, sampling)
    check_cost(n, active.steps * active.num_candidates)
    work = lambda: edit.mix(pipe, weights, n=n, seed=seed, **settings)  # noqa: E731
    mixed = yield from progress_of(work, expected_steps(pipe, sampling, n))
    edited = {"command": "mix", "weights": list(weights.values())}
    text = describe_picture(pipe, list(weights), (), sampling, edit=edited)
    yield seeds_sheet("mix", mixed.images, mixed.seeds, text)


def summed_weights(prompts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Prompt -> weight, without empty prompts; the weights of one that is given twice are added up."""
    weights: dict[str, float] = {}
    for prompt, weight in prompts:
        if prompt.strip():
            weights[prompt.strip()] = weights.get(prompt.strip(), 0) + weight
    return weights


def inpaint(opened: OpenPipeline, image: PickedFile, strokes: str, part: str, caption: str, n: int, seed: int) -> Shown:
    """Paint a part of an image: the part under the brush strokes, or else a named part."""
    prepared = edit.prepare_images(opened.pipe, open_picked(image))
    caption = parse_captions(caption)[0]
    text = describe_edit(opened, "inpaint", [caption], {})
    mask = painting_mask(strokes, part, prepared.shape[1])
    work = lambda: edit.inpaint(opened.pipe, prepared, mask, caption, n=n, seed=seed)  # noqa: E731
    painted = yield from progress_of(work, PAINTING_STEPS)
    yield seeds_sheet("inpainting", painted.images, painted.seeds, text, caption)


def progress_of(work: Callable[[], Any], steps: int) -> Generator[Progress, None, Any]:
    """Yield the progress of some work of so many steps, and return its result."""
    for event in watch(lambda _: work(), steps):
        if isinstance(event, Finished):
            return event.result
        yield event


def describe_edit(
    opened: OpenPipeline, name: str, captions: Sequence[str], settings: dict[str, Any], **others: Any
) -> dict[str, str]:
    """Text for the pictures of an edit, which says how they were drawn."""
    sampling = opened.pipe.sampling.for_drawing(**edit.DEFAULTS[name] | settings)
    return describe_picture(opened.pipe, captions, (), sampling, edit={"command": name, **others})


def frames_sheet(
    name: str, slider_label: str, frames: np.ndarray, amounts: Sequence[float], text: dict[str, str]
) -> str:
    """Frames (F, H, W, C), one large with a slider, and all side by side, to be saved as a grid or an animation."""
    labels = [f"{amount:.3g}" for amount in amounts]
    pictures = [
        finished_picture(frame, f"{name} {label}", label, text) for frame, label in zip(frames, labels, strict=True)
    ]
    still = png_link(captioned_grid([(name, frames)]), name, text)
    animation = gif_link([to_pil(frame, LARGE) for frame in frames], name)
    return sheet(slider(slider_label, list(frames), labels), row("", pictures, "film"), links(still, animation))


def painting_mask(strokes: str, part: str, size: int) -> np.ndarray:
    """Where to paint, bool (size, size): under the brush strokes, or the named part if there are none.

    page.js packs the strokes as np.packbits does, row by row, in base64.
    """
    try:
        brushed = np.unpackbits(np.frombuffer(base64.b64decode(strokes, validate=True), np.uint8))
    except ValueError:
        raise UserError("these are no brush strokes; brush again") from None
    if brushed.any():
        if len(brushed) != -(-(size**2) // 8) * 8:
            raise UserError("the brush strokes are on an image of another size; brush again")
        return brushed[: size**2].reshape(size, size).astype(bool)
    if part not in PARTS:
        raise UserError(f"there is no part {shown(part)}; choose from {', '.join(PARTS)}")
    quarters = np.zeros((2, 2), bool)
    quarters[PARTS[part]] = True
    half = np.arange(size) * 2 // size  # 0 for the first half of the rows or columns, 1 for the second
    return quarters[half][:, half]


def canvas(opened: OpenPipeline, image: PickedFile, strokes: str) -> str:
    """The image as the decoder sees it, to be brushed over, with some strokes; or "" if it cannot be read.

    The button then reports why.
    """
    try:
        return sheet(brush_canvas(edit.prepare_images(opened.pipe, open_picked(image))[0], strokes))
    except UserError:
        return ""

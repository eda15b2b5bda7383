"""Answer the buttons that draw captions: plain functions of an opened pipeline and a visitor's values.

They yield HTML to show, and a `Progress` now and then. They keep no state between calls, so visitors do not affect each
other. A UserError becomes one line on the page.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unclip.errors import UserError
from unclip.grids import captioned_grid
from unclip.page.markup import finished_picture, gif_link, links, picture, png_link, row, sheet, table
from unclip.page.pictures import PickedFile, open_picked
from unclip.page.shelf import OpenPipeline
from unclip.page.values import parse_captions
from unclip.page.watching import Finished, Progress, active_settings, expected_steps, watch
from unclip.picture_text import describe_picture
from unclip.settings import Sampling
from unclip.trajectory import Moment, Trajectory, denoising_frames

MAX_PICTURES = 64
"""Pictures per click."""
LONGEST_TEXT = 20_000
"""Letters of all captions of a click together."""
MAX_STEPS = 16 * 100
"""Steps of all pictures and candidates of a click together."""
MOMENTS = 40
"""Moments of the denoising that are shown per click: each is sent with all pictures that were drawn before."""

Shown = Iterator[str | Progress]


def draw(opened: OpenPipeline, caption: str, n: int, seed: int, **settings: Any) -> Shown:
    """Show a row of pictures per caption while they are denoised, one caption after the other."""
    captions = parse_captions(caption)
    pipe = opened.pipe
    sampling = pipe.sampling.for_drawing(**settings)
    active = active_settings(pipe, sampling)
    check_cost(len(captions) * n, active.steps * active.num_candidates)
    stride = math.ceil(len(captions) * active.steps / MOMENTS)
    per_caption = expected_steps(pipe, sampling, n, is_watched=True)
    trajectory = Trajectory()
    rows: list[str] = []
    drawn: list[tuple[str, np.ndarray]] = []
    for i, caption in enumerate(captions):
        for event in watch(lambda tell: pipe(caption, n=n, seed=seed, on_step=tell, **settings), per_caption):  # noqa: B023
            if isinstance(event, Progress):
                done = min(event.done, per_caption)  # nobody knows how many are drawn anew
                yield Progress(i * per_caption + done, len(captions) * per_caption)
            elif isinstance(event, Moment):
                trajectory(event)
                if event.step % stride == 0:
                    yield sheet(*rows, row(caption, [picture(x, f"{caption}, being drawn") for x in event.x]))
            elif isinstance(event, Finished):
                output = event.result
                drawn.append((caption, output.images))
                text = describe_picture(pipe, [caption], (), sampling)
                rows.append(row(caption, finished_pictures(caption, output.images, output.seeds, text, caption)))
        yield sheet(*rows)
    frames = denoising_frames([caption for caption in captions for _ in range(n)], trajectory, n)
    text = describe_picture(pipe, captions, range(seed, seed + n), sampling)
    yield sheet(*rows, links(png_link(captioned_grid(drawn), "grid", text), gif_link(frames, "denoising")))


def check_cost(count: int, steps: int) -> None:
    """Raise UserError if so many pictures, of so many steps with all candidates, are too much for one click."""
    if count > MAX_PICTURES:
        raise UserError(f"{count} pictures are more than the {MAX_PICTURES} of one click; ask for fewer")
    if count * steps > MAX_STEPS:
        raise UserError(
            f"{count} pictures of {steps} steps are {count * steps} steps, more than the {MAX_STEPS} of one click; "
            "ask for fewer pictures, steps or candidates"
        )


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
    settings = single_candidate(opened)
    sampling = pipe.sampling.for_drawing(**settings)
    steps = expected_steps(pipe, sampling, 1)
    pictures: list[str] = []
    for name, (embedding, decoder_caption) in inputs.items():

        def decode(_, embedding=embedding, decoder_caption=decoder_caption) -> np.ndarray:
            return pipe.decode(embedding, [decoder_caption], seed=seed, **settings)  # all from the same noise

        for event in watch(decode, steps):
            if isinstance(event, Progress):
                yield Progress(len(pictures) * steps + event.done, len(inputs) * steps)
            elif isinstance(event, Finished):
                described = describe_picture(pipe, [caption], [seed], sampling, drawn_from=name)
                pictures.append(finished_picture(event.result[0], f"{caption} from {name}", name, described, caption))
        yield sheet(row("Drawn from", pictures))
    cosines = [
        (name, f"{float(embedding @ text.T):.2f}", f"{float(embedding @ drawn.T):.2f}")
        for name, (embedding, _) in inputs.items()
        if embedding is not None
    ]
    nearest = (opened.text_embeddings @ drawn[0]).topk(min(8, len(opened.captions)))
    ranked = [(opened.captions[i], f"{cosine:.2f}") for cosine, i in zip(nearest.values, nearest.indices, strict=True)]
    yield sheet(
        row("Drawn from", pictures),
        '<div class="tables">',
        table(("Cosine of the", "with the caption's text", "with the prior's embedding"), cosines),
        table(("Training captions nearest to the prior's embedding", "cosine"), ranked),
        "</div>",
    )


def single_candidate(opened: OpenPipeline) -> dict[str, Any]:
    """The setting that has the decoder that draws, fast or not, draw each picture once."""
    active: Sampling = opened.pipe.sampling.for_drawing()
    is_fast = active_settings(opened.pipe, active) is active.fast_decoder
    return {"fast_num_candidates" if is_fast else "num_candidates": 1}


def finished_pictures(
    name: str, images: np.ndarray, seeds: Sequence[int], text: dict[str, str], caption: str = ""
) -> list[str]:
    """Pictures (n, H, W, C) with their seeds."""
    return [
        finished_picture(image, f"{name} seed {seed}", f"seed {seed}", text | {"seed": str(seed)}, caption)
        for image, seed in zip(images, seeds, strict=True)
    ]


def seeds_sheet(name: str, images: np.ndarray, seeds: Sequence[int], text: dict[str, str], caption: str = "") -> str:
    """Pictures (n, H, W, C) with their seeds, and a link that saves them together."""
    grid = png_link(captioned_grid([(name, images)]), name, text | {"seed": str(list(seeds))})
    return sheet(row("", finished_pictures(name, images, seeds, text, caption)), links(grid))

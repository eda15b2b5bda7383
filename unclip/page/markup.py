"""Show pictures as HTML, by pure functions. Everything that a user typed is escaped.

Pictures are embedded as PNGs of their own size; the browser enlarges them without smoothing.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from unclip.grids import gif_bytes
from unclip.images import png_bytes, to_pil

NORMAL = 112
LARGE = 280
"""Approximate heights of pictures, in CSS pixels."""

CSS = """
.gradio-container { overflow: clip !important }
.gradio-container img { image-rendering: pixelated }
.gradio-container .image-frame img { width: 100%; height: 100%; object-fit: contain }
@media (min-width: 900px) { .results { position: sticky; top: 8px; align-self: flex-start } }
.unclip { color: var(--body-text-color); line-height: 1.5 }
.unclip h3 { font-weight: 600; overflow-wrap: anywhere }
.unclip figure { margin: 0; text-align: center; font-size: .85rem }
.unclip figure img { display: block; max-width: 100%; margin: 0 auto 2px }
.unclip .row { display: flex; flex-wrap: wrap; gap: 6px; margin: 4px 0 16px }
.unclip table { margin: 0 0 16px }
.unclip td, .unclip th { padding: 2px 14px 2px 0; text-align: left; overflow-wrap: anywhere }
.unclip > a { text-decoration: underline; margin-right: 1em }
.unclip a:focus-visible { outline: 2px solid }
.problem { color: #b91c1c; font-weight: 600; overflow-wrap: anywhere }
.dark .problem { color: #fca5a5 }
"""


def data_url(content: bytes, media_type: str) -> str:
    """A URL that holds the content of a file; the media type is, for example, "image/png"."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def picture(
    image: np.ndarray,
    alt: str,
    title: str = "",
    name: str = "",
    height: int = NORMAL,
    text: Mapping[str, str] | None = None,
) -> str:
    """An image, uint8 (H, W, C), enlarged by a whole factor. With a file name, a click saves it, with its text."""
    source = data_url(png_bytes(to_pil(image), text), "image/png")
    width = image.shape[1] * max(1, round(height / image.shape[0]))
    html = f'<img src="{source}" alt="{escape(alt)}" style="width: {width}px">'
    if name:
        html = f'<a href="{source}" download="{escape(name)}" title="save {escape(name)}">{html}</a>'
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return f"<figure>{html}{caption}</figure>"


def row(heading: str, pictures: Sequence[str]) -> str:
    """Pictures side by side under a heading; they wrap where the screen is narrow."""
    title = f"<h3>{escape(heading)}</h3>" if heading else ""
    return f'<section>{title}<div class="row">{"".join(pictures)}</div></section>'


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>" for cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def png_link(picture: Image.Image, name: str, text: Mapping[str, str]) -> str:
    """A link that saves a picture with its text."""
    source = data_url(png_bytes(picture, text), "image/png")
    return f'<a href="{source}" download="{escape(name)}.png">Save as PNG</a>'


def gif_link(frames: Sequence[Image.Image], name: str) -> str:
    """A link that saves an animation."""
    return f'<a href="{data_url(gif_bytes(frames), "image/gif")}" download="{escape(name)}.gif">Save as GIF</a>'


def sheet(*parts: str) -> str:
    """Parts below each other, within the element that the page's styles apply to."""
    return f'<div class="unclip">{"".join(parts)}</div>'


def problem(message: str) -> str:
    """An error message on one line, which a screen reader announces."""
    return f'<p class="problem" role="alert">{escape(" ".join(message.split()))}</p>'

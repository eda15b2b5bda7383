"""Show pictures as HTML, by pure functions. Everything that a user typed is escaped.

Pictures are embedded as PNGs of their own size, with the text that says how they were drawn; the browser enlarges them
without smoothing, and page.js saves them.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from unclip.grids import gif_bytes
from unclip.images import png_bytes, to_pil

THUMBNAIL = 64
"""Longest side of an example's picture, in pixels."""


def data_url(content: bytes, media_type: str) -> str:
    """A URL that holds the content of a file; the media type is, for example, "image/png"."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def picture(image: np.ndarray, alt: str, title: str = "") -> str:
    """An image, uint8 (H, W, C), with a title beneath it."""
    return figure(f'<img src="{data_url(png_bytes(to_pil(image)), "image/png")}" alt="{escape(alt)}">', title)


def finished_picture(image: np.ndarray, name: str, title: str, text: Mapping[str, str], caption: str = "") -> str:
    """A picture that can be picked, to be saved by its name with its text, or sent to another tab with its caption."""
    source = data_url(png_bytes(to_pil(image), text), "image/png")
    html = f'<img src="{source}" alt="{escape(name)}">'
    data = f'data-name="{escape(name)}" data-caption="{escape(caption)}"'
    return figure(f'<button type="button" class="pick" aria-pressed="false" {data}>{html}</button>', title)


def figure(html: str, title: str) -> str:
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return f"<figure>{html}{caption}</figure>"


def row(heading: str, pictures: Sequence[str], kind: str = "row") -> str:
    """Pictures side by side under a heading; they wrap where the screen is narrow."""
    title = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f'<section>{title}<div class="{kind} of-{min(len(pictures), 4)}">{"".join(pictures)}</div></section>'


def slider(label: str, frames: Sequence[np.ndarray], labels: Sequence[str]) -> str:
    """The middle one of some frames, large, above a slider that shows the others in its place."""
    middle = len(frames) // 2
    large = picture(frames[middle], f"{label} {labels[middle]}", labels[middle])
    return (
        f'<div class="flip">{large}<label>{escape(label)} '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{middle}"></label></div>'
    )


def brush_canvas(image: np.ndarray, strokes: str) -> str:
    """An image, uint8 (H, W, C), under a canvas of the same pixels, which page.js paints; it holds some strokes."""
    source = data_url(png_bytes(to_pil(image)), "image/png")
    height, width = image.shape[:2]
    return (
        f'<p>Brush over the part to paint</p><div class="brush"><img src="{source}" alt="The image to paint in">'
        f'<canvas width="{width}" height="{height}" data-strokes="{escape(strokes)}" role="img" '
        'aria-label="The part to paint; by keyboard choose one below"></canvas></div>'
        '<button type="button" class="small clear">Clear the strokes</button>'
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>" for cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def png_link(picture: Image.Image, name: str, text: Mapping[str, str]) -> str:
    """A link that saves a picture with its text."""
    source = data_url(png_bytes(picture, text), "image/png")
    return f'<a href="{source}" download="{escape(name)}.png">Save the grid as PNG</a>'


def gif_link(frames: Sequence[Image.Image], name: str) -> str:
    """A link that saves an animation."""
    return f'<a href="{data_url(gif_bytes(frames), "image/gif")}" download="{escape(name)}.gif">Save as GIF</a>'


def links(*links: str) -> str:
    """Links side by side."""
    return f'<p class="links">{"".join(links)}</p>'


def sheet(*parts: str) -> str:
    """Parts below each other, within the element that the page's styles apply to."""
    return f'<div class="unclip">{"".join(parts)}</div>'


def chip(image: Image.Image, label: str = "", alt: str = "") -> str:
    """A small picture with a label, for a button."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    source = data_url(png_bytes(small), "image/png")
    return f'<span class="chip"><img src="{source}" alt="{escape(alt)}">{escape(label)}</span>'


def problem(message: str) -> str:
    """An error message on one line, which a screen reader announces."""
    return f'<p class="problem" role="alert">{escape(" ".join(message.split()))}</p>'


def notice(*lines: str) -> str:
    """Lines about what is done, which a screen reader announces when it has time."""
    return f'<div role="status">{"".join(f"<p>{escape(line)}</p>" for line in lines)}</div>'


def progress(done: int, total: int, *lines: str) -> str:
    """A bar, and lines beside and beneath it. They change too often to be announced."""
    bar = f'<progress value="{done}" max="{total}" aria-label="Progress"></progress>'
    return f'<div class="progress">{bar}{"".join(f"<p>{escape(line)}</p>" for line in lines)}</div>'


def recipe(link: str, command: str, python: str) -> str:
    """A link that draws a result again, and the same as a command and as Python, each to copy."""
    texts = {"Command": command, "Python": python}
    boxes = "".join(
        f'<h3>{name} <button type="button" class="small copy">Copy</button></h3><pre tabindex="0">{escape(text)}</pre>'
        for name, text in texts.items()
    )
    again = f'<a class="again" href="{escape(link)}">Link to this result</a>'
    return f'<div class="unclip">{again}<details><summary>Command and Python</summary>{boxes}</details></div>'

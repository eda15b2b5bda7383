"""Read what the page's buttons answer with, without a browser."""

import base64
import io
import re

import numpy as np
from PIL import Image

from unclip.page.watching import Progress


def sheets(shown) -> list[str]:
    """The HTML of an answer, without its progress."""
    return [event for event in shown if not isinstance(event, Progress)]


def last(shown) -> str:
    *_, final = sheets(shown)
    return final


def pictures(html: str) -> list[np.ndarray]:
    """The pictures in a piece of the page."""
    contents = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content in contents]


def linked(html: str, ending: str) -> Image.Image:
    """The file with that ending that a link in the page saves."""
    (content,) = re.findall(rf'<a href="data:[^;]+;base64,([^"]+)" download="[^"]*\.{ending}">Save', html)
    return Image.open(io.BytesIO(base64.b64decode(content)))

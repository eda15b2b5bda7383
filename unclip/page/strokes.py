"""The strokes of the brush, as they come from the browser."""

import io

import gradio as gr

from unclip.errors import UserError
from unclip.page.pictures import open_picked

KEPT_STROKES = 20
"""Visitors whose strokes of the brush are kept until they press the button."""


def readable(content: bytes) -> io.BytesIO | None:
    """The strokes, or None for what is no image: the editor sends that too, before it is ready."""
    try:
        open_picked(io.BytesIO(content))
    except UserError:
        return None
    return io.BytesIO(content)


def keep_strokes(painting: gr.ImageEditor) -> None:
    """Let the editor pass on the layer of the brush, and nothing else.

    The browser sends it to `accept_blobs`, and then its name with the click. gradio's own function stores whatever is
    sent, for ever.
    """
    strokes: dict[str, bytes] = {}

    def accept_blobs(blobs) -> None:
        if blobs.data["type"] == "layer":
            _, strokes[blobs.data["id"][:64]] = blobs.files[0]
        while len(strokes) > KEPT_STROKES:
            del strokes[next(iter(strokes))]

    def read_strokes(data) -> io.BytesIO | str | None:
        if data is None:
            return None
        if data.id is not None:
            return readable(strokes.pop(data.id, b""))
        return data.layers[0].path if data.layers else None

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    painting.accept_blobs = accept_blobs
    painting.preprocess = read_strokes

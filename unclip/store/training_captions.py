"""captions.txt: some of the captions that a pipeline was trained on, one per line, for whoever looks into it later."""

from pathlib import Path

from unclip.errors import UserError
from unclip.store.files import member
from unclip.store.manifest import read_manifests

LARGEST = 2**24
"""Bytes of the largest captions.txt that is read: far more than a thousand captions have."""


def read_training_captions(pipeline: Path) -> list[str]:
    """The captions in a pipeline's captions.txt, at least one; without any the example that its manifests name.

    Raises UserError for a file that is too large, or no text.
    """
    path = member(pipeline, "captions.txt")
    captions: list[str] = []
    if path.is_file():
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST} bytes, too many for captions; restore it")
        try:
            captions = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text in UTF-8 ({error}); restore it") from error
    if not captions:
        captions = [m.data["example"] for m in read_manifests(pipeline).values() if "example" in m.data][:1]
    return captions or ["a picture"]

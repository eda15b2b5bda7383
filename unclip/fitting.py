"""How an oblong picture becomes the square that models see."""

from typing import Literal, NamedTuple

Fit = Literal["crop", "pad", "stretch"]
"""crop: cut out the middle. pad: add white margins. stretch: change the aspect."""


class Placement(NamedTuple):
    """The part of a picture that is used, and its place in the square."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the part, in pixels of the picture."""
    size: tuple[int, int]
    """Width and height of the part in the square."""
    corner: tuple[int, int]
    """Left and top of the part in the square."""


def place_in_square(width: int, height: int, size: int, fit: Fit) -> Placement:
    """Where a picture of this width and height goes in a square of `size` pixels, as Pillow's `ImageOps` does it."""
    if fit == "crop":
        side = min(width, height)
        left = (width - side) / 2
        top = (height - side) / 2
        return Placement((left, top, left + side, top + side), (size, size), (0, 0))
    whole = (0.0, 0.0, float(width), float(height))
    if fit == "stretch":
        return Placement(whole, (size, size), (0, 0))
    new_width = size if width >= height else max(1, round(width / height * size))
    new_height = size if height >= width else max(1, round(height / width * size))
    return Placement(whole, (new_width, new_height), (round((size - new_width) / 2), round((size - new_height) / 2)))

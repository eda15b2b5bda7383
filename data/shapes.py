"""Coloured shapes on coloured grounds: a data set that is drawn here, without a download, and asks for composition.

Every colour and every shape occurs in training, but some pairs of them only in the test split: a model draws those only
if it has learned colour and shape apart.
"""

import math
import random
from functools import partial
from itertools import product

from PIL import Image, ImageDraw

from data.problems import Problems
from data.records import Listing, Record
from data.source_config import SourceConfig

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 215, 40),
    "green": (44, 160, 60),
    "blue": (40, 90, 220),
    "purple": (130, 60, 170),
    "pink": (250, 140, 190),
    "brown": (130, 80, 40),
}
GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "crescent")
PER_CAPTION = 16
"""Images of each caption: of other sizes, at other places."""
VALIDATION_EVERY = 16
SIDE = 128
"""Pixels per side as drawn; four times as many before they are smoothed."""


def is_held_out(colour: str, shape: str) -> bool:
    """Whether a pair is in the test split only: one in four, so that each colour and each shape stays in training."""
    return (list(COLOURS).index(colour) + SHAPES.index(shape)) % 4 == 0


def read_shapes(config: SourceConfig, problems: Problems) -> Listing:
    """The records of every colour, shape and ground."""
    records = []
    for colour, shape, ground, number in product(COLOURS, SHAPES, GROUNDS, range(PER_CAPTION)):
        name = f"{colour} {shape} {ground} {number}"
        captions = (f"a {colour} {shape} on a {ground} ground", f"a {colour} {shape} on {ground}")
        split = "validation" if len(records) % VALIDATION_EVERY == 0 else "train"
        if is_held_out(colour, shape):
            split = "test"
        records.append(Record(name, partial(draw_shape, colour, shape, ground, name), captions, split=split))
    return Listing(records, size=32)


def draw_shape(colour: str, shape: str, ground: str, name: str) -> Image.Image:
    """One shape; its name is the seed of its size and place."""
    generator = random.Random(name)
    side = 4 * SIDE
    radius = side * generator.uniform(0.22, 0.36)
    x, y = (side / 2 + generator.uniform(-1, 1) * (side / 2 - 1.1 * radius) for _ in range(2))
    picture = Image.new("RGB", (side, side), GROUNDS[ground])
    draw = ImageDraw.Draw(picture)
    fill = COLOURS[colour]

    def circle(x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)

    def polygon(count: int, turn: float, radii: tuple[float, ...] = (1.0,)) -> None:
        """A polygon whose corners lie at these shares of the radius in turn, the first one `turn` circles from up."""
        angles = [2 * math.pi * (turn + i / count) for i in range(count)]
        lengths = [radius * radii[i % len(radii)] for i in range(count)]
        draw.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for a, r in zip(angles, lengths, strict=True)], fill)

    if shape == "circle":
        circle(x, y, radius, fill)
    elif shape == "ring":
        circle(x, y, radius, fill)
        circle(x, y, 0.55 * radius, GROUNDS[ground])
    elif shape == "crescent":
        circle(x, y, radius, fill)
        circle(x + 0.45 * radius, y - 0.2 * radius, 0.8 * radius, GROUNDS[ground])
    elif shape == "cross":
        arm = 0.3 * radius
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill)
    elif shape == "star":
        polygon(10, 0, (1.0, 0.42))
    else:
        polygon({"triangle": 3, "square": 4, "diamond": 4}[shape], 1 / 8 if shape == "square" else 0)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)

"""The place of an oblong picture in a square."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from unclip.fitting import place_in_square
from unclip.pixels import read_pixels

SIZES = [(90, 60), (61, 90), (33, 32), (32, 32), (7, 5), (200, 3), (101, 100)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("square", [13, 32])
def test_pictures_are_fitted_as_pillow_does(size, square):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8))
    theirs = {
        "crop": ImageOps.fit(picture, (square, square)),
        "pad": ImageOps.pad(picture, (square, square), color="white") if min(size) > 3 else None,
        "stretch": picture.resize((square, square)),
    }
    for fit, expected in theirs.items():
        pixels = read_pixels(picture, square, 1, fit)
        assert pixels.shape == (square, square, 1)
        assert expected is None or pixels[..., 0].tobytes() == expected.tobytes()


def test_the_thinnest_pictures_keep_a_pixel_of_width():
    assert place_in_square(1, 1000, 16, "pad").size == (1, 16)
    assert place_in_square(1000, 1, 16, "pad").size == (16, 1)

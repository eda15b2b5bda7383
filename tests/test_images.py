"""Conversions of images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.errors import UserError
from unclip.images import from_pil, png_bytes, save_png, to_float, to_pil, to_uint8


def test_every_pixel_value_survives_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert floats[0] == -1
    assert floats[255] == 1
    torch.testing.assert_close(floats.double(), torch.linspace(-1, 1, 256, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(to_uint8(floats), values)


def test_floats_are_clamped_and_rounded_to_the_nearest_value():
    x = torch.tensor([-7.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.99999, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255, 255]


MODES = [("L", 1), ("RGB", 3), ("L", 3), ("P", 3), ("RGBA", 3), ("1", 1), ("LA", 1), ("CMYK", 3), ("I;16", 1)]


@pytest.mark.parametrize(("mode", "channels"), MODES)
def test_pil_images_of_any_mode_become_tensors(mode, channels):
    if mode == "I;16":
        picture = Image.fromarray(np.full((6, 8), 200 * 256 + 77, np.uint16))
    else:
        picture = Image.new("RGB", (8, 6), (200, 200, 200))
        picture = picture.convert("L" if mode == "LA" else "RGB").convert(mode, palette=Image.Palette.ADAPTIVE)
    x = from_pil(picture, channels)
    assert x.dtype == torch.uint8
    assert x.shape == (channels, 6, 8)
    if mode != "1":
        assert (x.int() - 200).abs().max() <= 3


def test_pixels_and_their_places_are_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    assert np.array_equal(from_pil(Image.fromarray(pixels), 3).permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(np.asarray(to_pil(pixels)), pixels)


def test_what_is_transparent_is_put_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255  # black, more and more of it
    assert from_pil(Image.fromarray(pixels), 1)[0, 0].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    assert from_pil(palette, 3)[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


def test_the_camera_s_orientation_is_applied():
    picture = Image.new("L", (4, 2))
    picture.putpixel((0, 0), 255)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    x = from_pil(Image.open(file), 1)
    assert x.shape == (1, 4, 2)
    assert x[0, 0].tolist() == [0, 255]


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(UserError, match="floating-point"):
        from_pil(Image.new("F", (2, 2)), 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_enlarged_as_squares(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    large = np.asarray(to_pil(pixels, height=12)).reshape(12, 18, channels)
    assert np.array_equal(large, pixels.repeat(3, axis=0).repeat(3, axis=1))
    assert to_pil(pixels, height=1).size == (6, 4)  # never made smaller


def test_pictures_are_saved_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", Image.fromarray(pixels))
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def test_text_of_a_png_is_read_back_whatever_its_letters():
    text = {"caption": "é 日 \n", "seed": "3", "odd": "a\0b \udcff"}
    with Image.open(io.BytesIO(png_bytes(Image.new("L", (3, 3)), text))) as picture:
        assert picture.text == text | {"odd": "a b \\udcff"}

"""Pixels in and out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from unclip.errors import UserError
from unclip.images import INK, PAPER, captioned_grid, from_pil, save_gif, save_png, to_float, to_pil, to_uint8, wrap


def test_notes_stand_beneath_captions_of_any_length():
    images = np.zeros((1, 28, 28, 1), np.uint8)
    for caption in ("", "a bag", "word " * 99):
        plain, noted = (np.asarray(captioned_grid([(caption, images)], notes=n)) for n in ((), ("draws 0.9",)))
        assert plain.shape == noted.shape
        assert (plain[:, :200] != noted[:, :200]).any()
        assert (plain[:, 200:] == noted[:, 200:]).all()


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


ODD = ["", " ", "a bag", "x" * 120, "👟🧥 日本語", "many words " * 200, "two\nlines\tand\ttabs", "\x00\ufffd"]


def test_a_grid_takes_any_caption():
    images = np.full((5, 28, 28, 1), 90, dtype=np.uint8)
    grid = captioned_grid([(caption, images) for caption in ODD])
    assert grid.mode == "RGB"
    assert grid.size == (200 + 5 * (84 + 4) + 4, len(ODD) * (84 + 4) + 4)
    inside = np.asarray(grid)[:, 200:]
    assert set(np.unique(inside).tolist()) == {90, PAPER[0]}  # no caption runs into the images


@pytest.mark.parametrize(("shape", "size"), [((28, 28, 1), 84), ((32, 32, 3), 96), ((100, 100, 3), 100)])
def test_a_grid_holds_every_image_where_it_belongs(shape, size):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *shape), dtype=np.uint8)
    grid = np.asarray(captioned_grid([("one", images[0]), ("two", images[1])]))
    height = max(size, 84)
    assert grid.shape == (2 * (height + 4) + 4, 200 + 3 * (size + 4) + 4, 3)
    for row in range(2):
        for column in range(3):
            y, x = 4 + row * (height + 4), 200 + column * (size + 4)
            cell = grid[y : y + size, x : x + size]
            factor = size // shape[0]
            want = np.broadcast_to(images[row, column], (*shape[:2], 3)).repeat(factor, axis=0).repeat(factor, axis=1)
            assert np.array_equal(cell, want)


def test_a_grid_takes_rows_of_unequal_length():
    rows = [("one", np.zeros((1, 28, 28, 1), np.uint8)), ("three", np.zeros((3, 28, 28, 1), np.uint8))]
    assert captioned_grid(rows).size == (200 + 3 * 88 + 4, 2 * 88 + 4)


def test_the_captions_are_on_the_grid():
    images = np.zeros((1, 28, 28, 1), np.uint8)
    blank, written = (np.asarray(captioned_grid([(c, images)]))[:, :200] for c in ("", "a bag"))
    assert (blank == PAPER).all()
    assert (written == INK).all(axis=-1).any()


@pytest.mark.parametrize("width", [5, 60, 184])
@pytest.mark.parametrize("text", ["", "a bag", "an image of a rather long coat", "x" * 50, "a " + "y" * 70 + " b"])
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    font = ImageFont.load_default(15)
    lines = wrap(text, width, font)
    assert len(lines) <= 4
    assert all(lines)
    if not (lines and lines[-1].endswith(" ...")):
        assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_text_that_does_not_fit_in_four_lines_says_so():
    lines = wrap("word " * 100, 100, ImageFont.load_default(15))
    assert len(lines) == 4
    assert lines[3].endswith(" ...")


def test_wrapping_a_very_long_word_takes_time_in_proportion():
    """Measuring every prefix of what is left, again for each line, took minutes on a caption of 1000 letters."""

    class Font:
        calls = 0

        def getlength(self, text: str) -> int:
            self.calls += 1
            return 8 * len(text)

    font = Font()
    lines = wrap("x" * 2000, 184, font)
    assert [len(line) for line in lines[:3]] == [23, 23, 23]
    assert font.calls < 3 * 2000


def test_pictures_are_saved_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_png(tmp_path / "a.png", Image.fromarray(pixels))
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)


def test_an_animation_loops_and_rests_on_its_last_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 120, 240)]
    save_gif(tmp_path / "a.gif", frames, milliseconds=100)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
        durations = []
        for i in range(3):
            animation.seek(i)
            durations.append(animation.info["duration"])
    assert durations == [100, 100, 1500]

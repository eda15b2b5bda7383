"""Edits on the page, without a browser: the images that they take, and where they paint."""

import base64
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMITTED
from page_answers import last, linked, pictures
from PIL import Image

from unclip import UserError
from unclip.page import editing


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [("RGBA", (300, 200), "png"), ("P", (5, 90), "gif"), ("1", (1, 1), "png"), ("CMYK", (64, 64), "jpeg")],
)
def test_image_may_be_of_any_kind(mode, size, kind, opened, tmp_path):
    Image.new(mode, size).save(tmp_path / f"image.{kind}")
    html = last(editing.vary(opened, tmp_path / f"image.{kind}", 2, 0, 0.0))
    assert len(pictures(html)) == 2


@pytest.mark.parametrize("content", [b"", b"not an image", (COMMITTED / "examples" / "coat.png").read_bytes()[:300]])
def test_file_that_is_no_image_is_refused(content, opened, tmp_path):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UserError, match="no image that can be read"):
        last(editing.vary(opened, tmp_path / "image.png", 1, 0, 0.0))


def test_blend_goes_from_the_one_image_to_the_other(opened, coat):
    boot = COMMITTED / "examples" / "ankle-boot.png"
    html = last(editing.blend(opened, coat, boot))
    large, *frames = pictures(html)
    assert len(frames) == editing.FRAMES
    np.testing.assert_array_equal(large, frames[editing.FRAMES // 2])
    for frame, image in ((frames[0], coat), (frames[-1], boot)):
        assert np.abs(frame.astype(float) - pixels(image)).mean() < 5
    assert linked(html, "gif").n_frames == editing.FRAMES


def test_mix_adds_up_the_weights_of_a_prompt_that_is_given_twice(opened):
    once = last(editing.mix(opened, "a sneaker", 0.5, "a bag", 0.5, "", 0.7, n=2, seed=0))
    twice = last(editing.mix(opened, "a sneaker", 0.2, "a bag", 0.5, "a sneaker", 0.3, n=2, seed=0))
    np.testing.assert_allclose(pictures(once), pictures(twice), atol=1)


# --- where to paint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 28, 64])
def test_brush_says_where_to_paint(size):
    brushed = np.random.default_rng(0).random((size, size)) < 0.1
    strokes = base64.b64encode(np.packbits(brushed).tobytes()).decode()
    np.testing.assert_array_equal(editing.painting_mask(strokes, "the upper half", size), brushed)


@pytest.mark.parametrize("part", editing.PARTS)
def test_where_nothing_is_brushed_a_named_part_is_painted(part):
    mask = editing.painting_mask("", part, 28)
    np.testing.assert_array_equal(editing.painting_mask(base64.b64encode(bytes(98)).decode(), part, 28), mask)
    assert mask.mean() == (1 if part == "everything" else 0.5)
    assert mask[-1, 0] == (part in ("the lower half", "the left half", "everything"))


def test_painting_keeps_what_is_outside(opened, coat):
    html = last(editing.inpaint(opened, coat, "", "the lower half", "a light coat", 2, 0))
    for picture in pictures(html):
        np.testing.assert_array_equal(picture[:14], pixels(coat)[:14])
        assert (picture[14:] != pixels(coat)[14:]).any()


def test_canvas_has_the_pixels_of_the_image(opened, coat, tmp_path):
    html = editing.canvas(opened, coat, 'a"b')
    np.testing.assert_array_equal(pictures(html)[0], pixels(coat))
    assert '<canvas width="28" height="28" data-strokes="a&quot;b"' in html
    assert editing.canvas(opened, tmp_path / "no.png", "") == ""

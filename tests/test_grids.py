"""Captioned grids, wrapped text, animations."""

import warnings

import matplotlib.font_manager
import numpy as np
import pytest
from PIL import Image, ImageFont

from data.inspect.charts import draw_bars, draw_contact_sheet
from unclip import fonts
from unclip.grids import INK, PAPER, captioned_grid, save_gif, wrap_text


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch) -> None:
    """The fonts of this machine decide nothing here."""
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", list)
    fonts.find_font.cache_clear()


def test_notes_stand_beneath_captions_of_any_length():
    images = np.zeros((1, 28, 28, 1), np.uint8)
    for caption in ("", "a bag", "word " * 99):
        plain, noted = (np.asarray(captioned_grid([(caption, images)], notes=n)) for n in ((), ("draws 0.9",)))
        assert plain.shape == noted.shape
        assert (plain[:, :200] != noted[:, :200]).any()
        assert (plain[:, 200:] == noted[:, 200:]).all()


def draw_labels(text: str) -> list[bytes]:
    """The pictures that hold labels, with this text as each of them."""
    images = np.zeros((1, 28, 28, 1), np.uint8)
    grid = captioned_grid([(text, images)], columns=[text], notes=[text])
    return [
        picture.tobytes() for picture in (grid, draw_contact_sheet(list(images), [text]), draw_bars(text, [(text, 1)]))
    ]


@pytest.mark.parametrize("letters", ["éß", "Жя", "αω", "שא"])
def test_letters_outside_ascii_are_no_boxes(letters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one, other in zip(*map(draw_labels, letters), strict=True):
            assert one != other


def test_letters_of_no_font_are_told_in_one_line():
    with pytest.warns(UserWarning, match="no font on this machine") as told:
        draw_labels("a 日 b")
    assert len(told) == 1


def test_a_font_of_the_system_is_taken_where_matplotlib_lacks_a_letter(monkeypatch):
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: ["b.ttf", "a.ttf", "broken.ttf"])
    monkeypatch.setattr(fonts, "read_codes", lambda path: frozenset({ord("日")} if path.name == "b.ttf" else ()))
    assert fonts.find_font(frozenset("日")).name == "b.ttf"


ODD = ["", " ", "\udcff", "a bag", "x" * 120, "👟🧥 日本語", "many words " * 200, "two\nlines\tand\ttabs", "\x00\ufffd"]


@pytest.mark.filterwarnings("ignore:no font")
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
    lines = wrap_text(text, width, font)
    assert len(lines) <= 4
    assert all(lines)
    if not (lines and lines[-1].endswith(" ...")):
        assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_text_that_does_not_fit_in_four_lines_says_so():
    lines = wrap_text("word " * 100, 100, ImageFont.load_default(15))
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
    lines = wrap_text("x" * 2000, 184, font)
    assert [len(line) for line in lines[:3]] == [23, 23, 23]
    assert font.calls < 3 * 2000


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

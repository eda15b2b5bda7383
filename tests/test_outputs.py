"""Outputs and pipelines as people look at them: PIL images, grids, notebooks, files, in a few words."""

import io

import numpy as np
import pytest
from PIL import Image
from small_pipeline import CAPTIONS, build

from unclip import UnCLIP, UserError


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> UnCLIP:
    return UnCLIP.from_pretrained(build(tmp_path_factory.mktemp("outputs") / "small"))


def test_images_are_there_as_pil_images(pipe):
    out = pipe(CAPTIONS[:2], n=2)
    assert [picture.size for picture in out.pil] == [(8, 8)] * 4
    assert np.array_equal(np.array(out.pil[3]), out.images[3, :, :, 0])


def test_a_grid_breaks_long_rows_and_notebooks_show_it(pipe):
    out = pipe([CAPTIONS[0], "a < b"], n=5)
    assert out.grid(columns=2).height > out.grid().height
    assert Image.open(io.BytesIO(out._repr_png_())).size == out.grid().size
    assert "a &lt; b" in out._repr_html_()


def test_saved_images_say_how_they_were_drawn_and_keep_each_other(pipe, tmp_path):
    out = pipe(["a bag", "a bag"], n=2, seed=3, guidance=2.0)
    paths = out.save(tmp_path / "drawn")
    assert [path.name for path in paths] == [f"00{i}-a-bag-seed{3 + i % 2}.png" for i in range(4)]
    assert np.array_equal(np.array(Image.open(paths[2])), out.images[2, :, :, 0])
    text = Image.open(paths[1]).text
    assert (text["caption"], text["seed"]) == ("a bag", "4")
    assert '"guidance": 2.0' in text["settings"]
    assert '"small"' in text["pipeline"]
    assert (tmp_path / "drawn" / "grid.png").is_file()
    with pytest.raises(UserError, match=r"grid\.png is a file"):
        out.save(tmp_path / "drawn" / "grid.png")


def test_representations_are_short_and_say_what_counts(pipe):
    assert repr(pipe(CAPTIONS[:2], n=2, seed=5)) == "<Output: 4 images of 8x8x1, 2 captions, seeds 5 to 6>"
    text = repr(pipe)
    assert len(text.splitlines()) <= 8
    for words in ("small", "8x8x1", "cpu", "float32", "clip", "diffusion", "parameters", "settings"):
        assert words in text

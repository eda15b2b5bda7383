"""The pipelines that the page offers, with their examples and the words that they know."""

import shutil

import pytest
from conftest import COMMITTED
from page_answers import last, pictures

from unclip import UserError
from unclip.page import drawing
from unclip.page.examples import Examples, spread
from unclip.page.shelf import Shelf, complete_pipelines
from unclip.store.index import write_index
from unclip.store.sealed_json import write_json
from unclip.unknown_words import describe_unknown_words, unknown_words


def test_shelf_offers_complete_pipelines_alone(two_pipelines, tmp_path):
    (two_pipelines / "empty").mkdir()
    unfinished = shutil.copytree(two_pipelines / "bare", two_pipelines / "unfinished")
    write_index(unfinished, leave_out="prior")  # as when a training begins
    assert sorted(complete_pipelines(two_pipelines)) == ["bare", "whole"]


def test_shelf_opens_a_pipeline_once(two_pipelines):
    shelf = Shelf(two_pipelines)
    assert shelf.open("whole") is shelf.open("whole")
    with pytest.raises(UserError, match=r"no pipeline '\.\./x'"):
        shelf.open("../x")


def test_pipeline_without_captions_and_examples_can_be_used_all_the_same(two_pipelines):
    bare = Shelf(two_pipelines).open("bare")
    assert bare.examples.captions == tuple(bare.captions)
    assert bare.examples.images == ()
    assert len(bare.example_images) == 4  # drawn
    assert len(pictures(last(drawing.look_inside(bare, "a bag", 0, None)))) == 4


def test_example_captions_are_varied():
    captions = [f"a {colour} {thing}" for thing in ("coat", "bag", "shoe", "hat") for colour in ("red", "blue", "red")]
    assert {caption.split()[-1] for caption in spread(captions, 4)} == {"coat", "bag", "shoe", "hat"}
    assert spread(["a"], 8) == ["a"]
    assert len(set(spread(captions, 8))) == 8


@pytest.mark.parametrize(
    ("caption", "unknown"),
    [
        ("a green elephant", ["green", "elephant"]),
        ("A Bag!", []),
        ("bags", ["bags"]),
        ("", []),
        ("紅包", []),
        ("紅色", ["紅色"]),
    ],
)
def test_words_that_no_training_caption_contains_are_named(caption, unknown, opened):
    captions = ["a bag", "a dark coat", "包紅"]
    assert unknown_words(caption, captions) == unknown
    line = describe_unknown_words(opened.pipe, [caption], captions)
    assert (line is None) == (not unknown)
    assert not line or all(repr(word) in line for word in [*unknown, "a bag"])
    assert describe_unknown_words(opened.pipe, [caption], captions[:1]) is None  # which is but an example


def test_examples_that_no_index_names_are_refused(two_pipelines):
    folder = two_pipelines / "bare"
    shutil.copytree(COMMITTED / "examples", folder / "examples")
    with pytest.raises(
        UserError, match=r"not among the files of its model_index\.json; give the last training command"
    ):
        Examples.read(folder, ["a bag"])
    write_index(folder)
    assert Examples.read(folder, ["a bag"]).images


def test_examples_that_are_none_are_refused(two_pipelines):
    bad = [{"captions": []}, {"captions": [{"path": "/etc/passwd"}]}, {"change": ["a"]}, {"images": 3}, ["a bag"]]
    for content in [*bad, *({"images": [name]} for name in ("/etc/passwd", "../README.md", "", ".", "\0", "gone.png"))]:
        write_json(two_pipelines / "whole" / "examples" / "examples.json", content)
        with pytest.raises(UserError, match="examples"):
            Examples.read(two_pipelines / "whole", ["a bag"])


def test_examples_that_lead_elsewhere_are_refused(two_pipelines, coat):
    whole = two_pipelines / "whole"
    (whole / "examples" / "coat.png").unlink()
    (whole / "examples" / "coat.png").symlink_to(coat)
    with pytest.raises(UserError, match=r"names 'coat\.png', which is no image of its own"):
        Examples.read(whole, ["a bag"])
    shutil.rmtree(whole / "examples")
    (whole / "examples").symlink_to(coat.parent)
    with pytest.raises(UserError, match="no image of its own"):
        Examples.read(whole, ["a bag"])
    (two_pipelines / "linked").symlink_to(COMMITTED)  # the user's own link, to a whole pipeline
    assert len(Examples.read(two_pipelines / "linked", ["a bag"]).images) == 6

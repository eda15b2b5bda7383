"""Image to image: from nothing changed to all of it."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from unclip import UnCLIP, UserError
from unclip.edit import image_to_image

EXAMPLES = ROOT / "checkpoints" / "fashion-mnist" / "examples"


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return UnCLIP.from_pretrained(ROOT / "checkpoints" / "fashion-mnist")


@pytest.fixture(scope="module")
def shoe() -> Image.Image:
    return Image.open(EXAMPLES / "sneaker.png")


def test_more_strength_changes_more_from_nothing_to_all(pipe, shoe):
    original = pipe.read_images(shoe).astype(int)
    changes = [
        np.abs(image_to_image(pipe, shoe, "a bag", strength=strength, n=4, steps=6).images - original).mean()
        for strength in (0, 0.3, 0.6, 1)
    ]
    assert changes[0] == 0
    assert changes[1] < changes[2] < changes[3]


def test_full_strength_draws_what_the_caption_alone_does(pipe, shoe):
    settings = {"steps": 6, "num_candidates": 1}
    redrawn = image_to_image(pipe, shoe, "a bag", strength=1, n=3, seed=5, **settings)
    assert np.abs(redrawn.images - pipe("a bag", n=3, seed=5, **settings).images.astype(int)).max() <= 2
    assert redrawn.seeds == [5, 6, 7]


def test_several_images_go_with_captions_of_their_own_or_with_none(pipe, shoe):
    images = [shoe, Image.open(EXAMPLES / "ankle-boot.png")]
    out = image_to_image(pipe, images, ["a bag", "a dress"], n=2, steps=3, guidance=2.0, negative="a shoe")
    assert out.captions == ["a bag", "a bag", "a dress", "a dress"]
    assert image_to_image(pipe, images, n=2, steps=3).captions == [""] * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strength": 1.5}, "strength must be from 0 to 1, not 1.5"),
        ({"captions": ["a"] * 3}, "3 captions cannot go with 1 image"),
        ({"negative": "a bag", "guidance": 1.0}, "negative is what guidance leads away from"),
        ({"num_inference_steps": 3}, "num_inference_steps is called steps here"),
    ],
)
def test_bad_arguments_are_refused(arguments, words, pipe, shoe):
    with pytest.raises(UserError, match=words):
        image_to_image(pipe, shoe, **arguments)

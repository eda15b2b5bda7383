"""The judge of data without classes: what it reads of captions, what it learns, and what it says."""

import itertools
import zlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from data.dataset import CaptionedImages, ListedCaptions
from stages.evaluation.evaluate import EvaluateOptions
from stages.evaluation.judge import TERMS, JudgeConfig, Matcher, judge_images, term_ids
from stages.evaluation.judge_training import trained_judge

CPU = torch.device("cpu")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
PLACES = {
    "left": (slice(5, 15), slice(0, 8)),
    "right": (slice(5, 15), slice(12, 20)),
    "top": (slice(0, 8), slice(5, 15)),
}
CAPTIONS = [f"A {colour} box at the {place}." for colour, place in itertools.product(COLOURS, PLACES)]
HELD_OUT = "A white box at the right."
SETTINGS = replace(EvaluateOptions().judge, steps=150, batch_size=32, lr=1e-2, warmup=10, ema=0.9, evaluate_every=150)


def boxes(count: int, seed: int, captions: list[str]) -> CaptionedImages:
    """Coloured boxes on noise, whose captions name colour and place. Nothing is labelled."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(80, 140, (count, 3, 20, 20), generator=generator, dtype=torch.uint8)
    ids = torch.arange(count) % len(captions)
    for image, i in zip(images, ids.tolist(), strict=True):
        _, colour, _, _, _, place = captions[i].strip(".").split()
        image[:, *PLACES[place]] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
    return CaptionedImages("boxes", images, ListedCaptions(captions, ids[:, None], torch.ones_like(ids)))


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A matcher that never saw a white box at the right, and the folder of its cache. Read only."""
    cache = tmp_path_factory.mktemp("cache")
    captions = [caption for caption in CAPTIONS if caption != HELD_OUT]
    held_out = boxes(60, 1, captions).captions_as_classes()
    return trained_judge(boxes(300, 0, captions), held_out, SETTINGS, CPU, cache), cache


def test_terms_are_the_words_and_the_pairs_of_neighbours():
    def rows(*terms):
        return [1 + zlib.crc32(term.encode()) % (TERMS - 1) for term in terms]

    ids = term_ids(["Two red stars", "stars", "", "l'été à 猫"])
    assert ids.shape[0] == 4
    assert ids[0, :5].tolist() == rows("two", "red", "stars", "two red", "red stars")
    assert ids[1].tolist() == rows("stars") + [0] * (ids.shape[1] - 1)
    assert not ids[2].any()
    assert ids[3].tolist() == rows("l", "'", "été", "à", "猫", "l '", "' été", "été à", "à 猫")
    assert 0 < ids.max() < TERMS
    one, other = term_ids(["a red box and a blue ring", "a blue box and a red ring"]).tolist()
    assert set(one) != set(other), "which colour goes with which thing"


def test_scores_are_cosines_to_the_captions_to_choose_among():
    torch.manual_seed(0)
    matcher = (
        Matcher(JudgeConfig(classes=16, channels=1, width=16)).eval().choose_among(["a cat", "a dog", "a cat on a mat"])
    )
    images = torch.randint(0, 256, (5, 1, 12, 12), dtype=torch.uint8)
    scores, features = judge_images(matcher, images, batch_size=2)
    assert scores.shape == (5, 3)
    assert features.shape == (5, 64)
    with torch.inference_mode():
        embeddings = matcher.image_network.head(features)
        table = matcher.term_table.weight
        text = torch.stack([table[row[row > 0]].sum(dim=0) for row in matcher.asked_terms])
        expected = F.cosine_similarity(embeddings[:, None], text[None], dim=-1)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_a_matcher_finds_the_caption_of_real_images_and_even_of_a_pair_that_it_never_saw(trained_once):
    matcher, _ = trained_once
    test = boxes(120, 2, CAPTIONS)
    scores, _ = judge_images(matcher.choose_among(CAPTIONS), test.images)
    right = scores.argmax(dim=1) == test.draw(torch.arange(120), torch.default_generator, one_phrasing=True)
    assert right.float().mean() > 0.95  # chance is 1/12; left and right are told apart, so nothing was mirrored
    unseen = torch.arange(120) % 12 == CAPTIONS.index(HELD_OUT)
    assert right[unseen].float().mean() > 0.8


def test_a_matcher_is_trained_once_for_its_data_and_settings(trained_once):
    matcher, cache = trained_once
    captions = [caption for caption in CAPTIONS if caption != HELD_OUT]
    train, held_out = boxes(300, 0, captions), boxes(60, 1, captions).captions_as_classes()
    weights = {path: path.stat().st_mtime_ns for path in cache.rglob("model.safetensors")}
    again = trained_judge(train, held_out, SETTINGS, CPU, cache)
    assert torch.equal(again.term_table.weight, matcher.term_table.weight)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("model.safetensors")} == weights
    short = replace(SETTINGS, steps=2)
    trained_judge(replace(train, images=train.images.flip(0)), held_out, short, CPU, cache)
    assert len(list(cache.glob("matcher-*"))) == 2


@pytest.mark.parametrize(("size", "fold"), [(5, 1), (20, 2), (25, 1), (28, 2), (32, 2), (64, 4), (128, 8)])
def test_large_images_are_judged_in_larger_squares_and_any_size_is_taken(tmp_path, size, fold):
    images = torch.randint(0, 256, (12, 3, size, size), dtype=torch.uint8)
    rows = torch.arange(12)[:, None] % 2
    data = CaptionedImages("noise", images, ListedCaptions(["a", "b"], rows, torch.ones(12, dtype=torch.long)))
    config = replace(SETTINGS, steps=1, batch_size=4)
    matcher = trained_judge(data, data.captions_as_classes(), config, CPU, tmp_path)
    assert matcher.config.fold == fold
    assert judge_images(matcher.choose_among(["a"]), images)[0].shape == (12, 1)

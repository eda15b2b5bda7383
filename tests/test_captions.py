"""Captions: the rule of the attributes against plain loops, and what the drawn sentences say of their images."""

import numpy as np
import pytest
import torch

from data.dataset import CaptionedImages
from data.fashion_mnist_captions import (
    CLASSES,
    HELD_OUT,
    NAMES,
    PLAIN_CAPTIONS,
    TONES,
    WIDTHS,
    Grammar,
    GrammarCaptions,
    attribute_codes,
    attributes,
    class_bounds,
    is_held_out,
    noun_phrase,
)

GENERATOR = torch.default_generator  # seeded by torch.manual_seed
CLASS_OF = {name: label for label, names in enumerate(NAMES) for name in names}


def parse(caption: str) -> tuple[str, str, str]:
    """The class, tone and width that a caption speaks of: its noun is the longest that it ends with."""
    text = caption.removesuffix(" on a black background")
    noun = max((name for name in CLASS_OF if text == name or text.endswith(f" {name}")), key=len)
    words = text.removesuffix(noun).split()
    tone, width = "", ""
    while words and words[-1] in {*TONES, *WIDTHS}:
        word = words.pop()
        tone, width = (word, width) if word in TONES else (tone, word)
    assert not {*words} & {"dark", "light", "narrow", "wide"}
    return CLASSES[CLASS_OF[noun]], tone, width


def slow_attributes(image: np.ndarray) -> tuple[float, float]:
    bright, rows = [], set()
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if image[y, x] >= 32:
                bright.append(int(image[y, x]))
                rows.add(y)
    return (sum(bright) / len(bright), len(bright) / len(rows)) if bright else (0.0, 0.0)


@pytest.fixture(scope="module")
def grammar():
    return Grammar.build()


@pytest.fixture(scope="module")
def training(splits):
    return splits["train"]


def test_attributes_equal_a_slow_loop(training):
    images = torch.cat([training.images[:40], torch.zeros(1, 1, 28, 28, dtype=torch.uint8)])
    images[0, 0, 0, :2] = torch.tensor([31, 32])  # both sides of the threshold
    expected = [slow_attributes(image) for image in images[:, 0].numpy()]
    np.testing.assert_allclose(attributes(images).numpy(), expected, rtol=1e-6)
    assert attributes(images)[-1].tolist() == [0, 0]


def test_bounds_are_those_of_each_class():
    torch.manual_seed(0)
    labels = torch.arange(400) % 10
    measures = torch.rand(400, 2) * 100 + labels[:, None] * 50
    bounds = class_bounds(measures, labels)
    for label in range(10):
        expected = np.quantile(measures[labels == label].numpy(), [1 / 3, 2 / 3], axis=0).T
        np.testing.assert_allclose(bounds[label].numpy(), expected, rtol=1e-5)


def test_codes_say_low_high_or_nothing():
    bounds = torch.zeros(10, 2, 2)
    bounds[4] = torch.tensor([[10.0, 20.0], [1.0, 2.0]])
    measures = torch.tensor([[9.0, 3.0], [10.0, 1.5], [20.0, 0.5], [21.0, 2.0]])
    codes = attribute_codes(measures, torch.full((4,), 4), bounds)
    assert [(TONES[tone], WIDTHS[width]) for tone, width in codes.tolist()] == [
        ("dark", "wide"), ("", ""), ("", "narrow"), ("light", ""),
    ]  # fmt: skip


def test_dark_training_images_are_darker_and_narrow_ones_narrower_in_every_class(training):
    measures = attributes(training.images)
    for label in range(10):
        own = training.labels == label
        for column in range(2):
            low, middle, high = (measures[own & (training.attributes[:, column] == code), column] for code in (1, 0, 2))
            bound = training.bounds[label, column]
            assert len(low) == 0 or low.max() < bound[0]  # a held-out third is empty
            assert bound[0] <= middle.min()
            assert len(high) == 0 or middle.max() <= bound[1] < high.min()


def test_plain_captions_are_the_ten_exactly():
    assert PLAIN_CAPTIONS == (
        "an image of a t-shirt/top", "an image of trousers", "an image of a pullover", "an image of a dress",
        "an image of a coat", "an image of a sandal", "an image of a shirt", "an image of a sneaker",
        "an image of a bag", "an image of an ankle boot",
    )  # fmt: skip


def test_plain_captions_are_among_those_trained_on(grammar):
    assert set(PLAIN_CAPTIONS) <= set(grammar.captions)


def test_articles_and_plurals_are_english():
    assert noun_phrase("dress", "dark", "narrow", False)[0] == "a dark narrow dress"
    assert noun_phrase("dress", "dark", "narrow", True)[0] == "a narrow dark dress"
    assert noun_phrase("ankle boot", "", "", False)[0] == "an ankle boot"
    assert noun_phrase("trousers", "", "narrow", False)[0] == "narrow trousers"
    assert noun_phrase("pair of trousers", "", "", False)[0] == "a pair of trousers"


def test_captions_are_distinct_language(grammar):
    assert len(grammar.captions) == len(set(grammar.captions)) > 1000
    for caption in grammar.captions:
        assert caption == " ".join(caption.split())
        assert " a trousers" not in caption
        assert " a pants" not in caption
        assert " a ankle" not in caption
        assert " a open" not in caption


def test_no_training_caption_says_a_held_out_pair(grammar):
    said = {parse(caption) for caption in grammar.captions}
    for attribute, name in HELD_OUT:
        assert not any(attribute in (tone, width) for found, tone, width in said if found == name)
    for tone in ("dark", "light"):
        assert ("dress", tone, "narrow") in said
    assert ("ankle boot", "dark", "wide") in said  # the attribute alone, and the class alone, do occur
    assert ("trousers", "light", "wide") in said


def test_drawn_captions_tell_the_truth_about_their_images(training):
    torch.manual_seed(0)
    rows = torch.arange(3000)
    kinds = set()
    for row, drawn in zip(rows.tolist(), training.draw(rows, GENERATOR).tolist(), strict=True):
        name, tone, width = parse(training.captions[drawn])
        assert name == CLASSES[training.labels[row]]
        assert tone in ("", TONES[training.attributes[row, 0]])
        assert width in ("", WIDTHS[training.attributes[row, 1]])
        kinds.add((bool(tone), bool(width)))
    assert len(kinds) == 4


def test_attributes_are_said_half_of_the_time(grammar):
    torch.manual_seed(0)
    drawn = grammar.draw(torch.full((2000,), 3), torch.tensor([[1, 1]]).expand(2000, 2), GENERATOR)
    said = [parse(grammar.captions[i]) for i in drawn]
    assert 0.45 < sum(tone == "dark" for _, tone, _ in said) / 2000 < 0.55
    assert 0.45 < sum(width == "narrow" for _, _, width in said) / 2000 < 0.55


def test_weighted_pairs_let_a_caption_stand_equally_for_all_of_its_images(grammar):
    """The plain caption is drawn for one in four images with two attributes, and always for those without any."""
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(2000, 1)
    labels = torch.full((len(codes),), 3)
    captioner = GrammarCaptions(grammar, labels, codes)
    data = CaptionedImages("dresses", torch.zeros(len(codes), 1, 1, 1, dtype=torch.uint8), captioner)
    drawn = data.draw(torch.arange(len(data)), torch.Generator().manual_seed(0))
    parsed = [parse(grammar.captions[i]) for i in drawn]
    said = torch.tensor([[TONES.index(tone), WIDTHS.index(width)] for _, tone, width in parsed])
    for meaning in ((0, 0), (1, 0), (0, 2)):
        asked = (said == torch.tensor(meaning)).all(dim=1)
        weights = torch.zeros(3, 3).index_put_(tuple(codes[asked].T), data.pair_weights[asked], accumulate=True)
        weights = weights[weights > 0]
        assert len(weights) == 3 ** meaning.count(0)
        assert weights.std() / weights.mean() < 0.1


def test_validation_images_with_a_held_out_pair_are_captioned_without_it(splits):
    data = splits["validation"]
    light = torch.tensor([TONES.index("light") == tone for tone in data.attributes[:, 0].tolist()])
    rows = (light & (data.labels == CLASSES.index("ankle boot"))).nonzero()[:, 0]
    torch.manual_seed(0)
    for _ in range(4):
        drawn = data.draw(rows, GENERATOR)
        assert drawn.min() >= 0  # -1 would silently be the last caption of the list
        assert {parse(data.captions[i])[:2] for i in drawn} == {("ankle boot", "")}


def test_one_phrasing_makes_equal_meaning_an_equal_string(grammar):
    labels = torch.arange(300) % 10
    codes = torch.randint(0, 3, (300, 2), generator=torch.Generator().manual_seed(0))
    codes[is_held_out(codes, labels)] = 0  # pairs that no training image shows
    phrasings = set()
    for seed in range(30):
        torch.manual_seed(seed)
        captions = {grammar.captions[i] for i in grammar.draw(labels, codes, GENERATOR, one_phrasing=True)}
        meanings = {parse(caption) for caption in captions}
        assert len(meanings) == len(captions)
        phrasings.add(min(captions))
    assert len(phrasings) > 10  # but not the same from batch to batch


def test_without_one_phrasing_a_class_is_told_in_many_ways(grammar):
    torch.manual_seed(0)
    labels = torch.full((500,), 8)
    captions = {grammar.captions[i] for i in grammar.draw(labels, torch.zeros(500, 2, dtype=torch.long), GENERATOR)}
    assert len(captions) > 20
    assert {parse(caption)[0] for caption in captions} == {"bag"}

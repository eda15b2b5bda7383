"""Odd and bad input to a pipeline, and folders that hold none."""

import warnings

import numpy as np
import pytest
import torch
from samples import BAG, FEW

from unclip import UnCLIP, UserError
from unclip.store.sealed_json import read_record, write_json, write_record


def test_long_caption_is_cut_with_a_warning_and_drawn(tiny):
    long = "a dark narrow dress and " * 40 + "a bag"
    with pytest.warns(UserWarning, match=r"caption of \d+ tokens is cut to the \d+ that fit: 'a dark narrow dress"):
        cut = tiny(long, **FEW)
    assert cut.images.shape == (1, 28, 28, 1)
    assert cut.captions == [long]
    with pytest.warns(UserWarning, match="is cut"):
        assert np.array_equal(tiny(long + " and a shoe", **FEW).images, cut.images)


def test_many_long_captions_are_told_in_one_line_with_their_count(tiny):
    long = ["a dark narrow dress and " * n + "a bag" for n in (20, 30, 25)]
    with pytest.warns(UserWarning, match="captions are cut") as caught:
        tiny.encode_text(["a bag", *long])
    assert len(caught) == 1
    words = str(caught[0].message)
    assert words.startswith("3 captions are cut to the ")
    assert "--model.text.context" in words
    assert f"the longest, of {len(tiny.tokenizer.core.encode(long[1]).ids)}:" in words


def test_any_text_is_drawn_without_a_warning(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = tiny(["靴 👟", "ÄÖÜ ß", "\x00\x7f", "<|endoftext|>"], **FEW)
    assert out.images.shape == (4, 28, 28, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"captions": []}, "the list of captions is empty"),
        ({"captions": BAG, "n": 0}, "n must be at least 1, not 0"),
        ({"captions": BAG, "seed": -1}, "seed must not be negative"),
        ({"captions": BAG, "steps": 0}, "steps must be from 1 to 10000, not 0"),
        ({"captions": BAG, "steps": 5000}, "steps must be between 1 and 1000, not 5000"),
        ({"captions": BAG, "prior_steps": 5000}, "prior_steps must be between 1 and 1000, not 5000"),
        ({"captions": BAG, "sampler": "euler"}, "sampler must be one of ddpm, ddim, dpmpp, consistency, not 'euler'"),
        ({"captions": BAG, "guidance": -1.0}, "guidance must be from 0 to 100, not -1"),
        (
            {"captions": BAG, "guidance_interval": (0.6, 0.4)},
            "guidance_interval must be two ascending numbers in 0 .. 1",
        ),
        ({"captions": BAG, "prior_guidance": float("nan")}, "prior_guidance must be from 0 to 100, not nan"),
        ({"captions": BAG, "eta": 1.5}, "eta must be from 0 to 1, not 1.5"),
        ({"captions": BAG, "prior_num_candidates": 0}, "prior_num_candidates must be from 1 to 256, not 0"),
        ({"captions": BAG, "batch_size": 0}, "batch_size must be from 1 to 4096, not 0"),
        ({"captions": ["a bag", "\ud800"]}, "is not valid Unicode text"),
        ({"captions": [3]}, "caption"),
        ({"captions": [None]}, "caption"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, words, tiny):
    with pytest.raises(UserError) as caught:
        tiny(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_setting_is_refused_by_name(tiny):
    for call in (tiny, tiny.embed, lambda captions, **settings: tiny.decode(None, captions, **settings)):
        with pytest.raises(UserError, match="there is no setting 'guidence'; choose from steps, guidance"):
            call([BAG], guidence=3.0)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((2, 28, 28, 1), np.float32),
        np.zeros((2, 28, 28, 2), np.uint8),
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
    ],
)
def test_images_of_another_layout_are_refused(images, tiny):
    with pytest.raises(UserError, match="images must be uint8"):
        tiny.encode_image(images)


def test_empty_lists_are_refused_everywhere(tiny):
    nothing = torch.zeros(0, tiny.clip.config.embed_dim)
    for call in (
        lambda: tiny.encode_text([]),
        lambda: tiny.encode_image([]),
        lambda: tiny.embed([]),
        lambda: tiny.decode(None, []),
        lambda: tiny.decode(nothing),
    ):
        with pytest.raises(UserError):
            call()


def test_decode_refuses_what_does_not_fit(tiny):
    embeddings = tiny.embed(BAG, n=2, **FEW)
    with pytest.raises(UserError, match="decode needs embeddings, captions, or both"):
        tiny.decode(None)
    with pytest.raises(UserError, match="2 embeddings cannot go with 3 captions"):
        tiny.decode(embeddings, [BAG] * 3)
    with pytest.raises(UserError, match="seed must not be negative"):
        tiny.decode(embeddings, seed=-3)
    with pytest.raises(UserError, match="embeddings"):
        tiny.decode(embeddings[:, :5])


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder"])
def test_pipeline_without_a_stage_is_refused(stage, copied):
    (copied / stage).rename(copied.parent / "away")
    with pytest.raises(UserError, match=f"has no trained {stage}; train it with: python train_{stage}.py"):
        UnCLIP.from_pretrained(copied)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_pipeline_without_its_tokenizer_is_refused(content, copied):
    path = copied / "tokenizer.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json") as caught:
        UnCLIP.from_pretrained(copied)
    assert "\n" not in str(caught.value)


def test_a_pipeline_whose_settings_are_damaged_does_not_open(copied):
    index = read_record(copied / "model_index.json")
    changed = index | {"sampling": {"decoder": {"guidence": 3.0}}}
    write_record(copied / "model_index.json", changed)
    with pytest.raises(UserError, match=r"model_index\.json has the unknown field 'guidence'"):
        UnCLIP.from_pretrained(copied)
    write_json(copied / "model_index.json", changed)  # by hand
    with pytest.raises(UserError, match=r"model_index\.json has changed since it was written"):
        UnCLIP.from_pretrained(copied)

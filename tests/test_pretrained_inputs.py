"""The tokenizer and the preprocessing of a pretrained CLIP, which travel with its weights."""

import json
import sys

import ftfy
import numpy as np
import open_clip
import pytest
import torch
import transformers
from foreign import (
    AWKWARD,
    END,
    START,
    WORDS,
    clip_vocabulary,
    edit,
    huggingface_clip,
    open_clip_files,
    small_open_clip,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unclip.caption_cleaning import UNCHANGED_BY_FTFY
from unclip.clip import CLIPConfig, load_clip
from unclip.clip.foreign.huggingface import export_preprocess
from unclip.clip.preprocess import Preprocess
from unclip.clip.preprocess_config import PreprocessConfig
from unclip.clip.pretrained import adopt_clip
from unclip.clip.vision import VisionConfig
from unclip.errors import UserError

# --- tokenizers -------------------------------------------------------------------------------------------------------


def thousand_captions() -> list[str]:
    generator = np.random.default_rng(0)
    pieces = [*" ".join(WORDS).split(), *AWKWARD, "Photo", "OF", "dog's", "  "]
    made = [" ".join(generator.choice(pieces, generator.integers(1, 9))) for _ in range(1000 - len(AWKWARD))]
    return [*AWKWARD, *made]


@pytest.mark.parametrize("form", ["vocab.json and merges.txt", "tokenizer.json"])
def test_tokenizer_equals_that_of_transformers_on_a_thousand_captions(form, tmp_path):
    huggingface_clip(tmp_path, {"vocab_size": 2000, "eos_token_id": 2})
    (tmp_path / "tokenizer.json").unlink()
    clip_vocabulary(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    if form == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "vocab.json").unlink()
        (tmp_path / "merges.txt").unlink()
    _, tokenizer, _ = load_clip(tmp_path)
    captions = thousand_captions()
    expected = theirs(captions, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with pytest.warns(UserWarning, match="captions are cut to"):
        result = tokenizer.encode(captions, 77)
    assert torch.equal(result, expected["input_ids"])
    assert result.unique().numel() > 50


CURLY = [
    "don\u2019t", "a \u201cgood\u201d dog", "schÃ¶n", "&amp;lt;b&amp;gt; caf&eacute;", "e&#769;t&#233;", "it&rsquo;s",
    "dogs&#39; bones", "ﬁsh", "a\u3000b", "ΟΔΟΣ", "\uff21\uff22", "\x1b[31mred\x1b[0m dog", "x\x07y", "A\r\nB", "ǅ",
]  # fmt: skip


@pytest.fixture
def simple_tokenizer(tmp_path) -> open_clip.SimpleTokenizer:
    """open_clip's own, with a CLIP beside whose tokenizer is it in Hugging Face's files."""
    theirs = open_clip.SimpleTokenizer()
    open_clip_files(tmp_path, small_open_clip() | {"text_cfg": {**small_open_clip()["text_cfg"], "vocab_size": 49408}})
    (tmp_path / "tokenizer.json").unlink()
    named = {"<start_of_text>": START, "<end_of_text>": END}
    (tmp_path / "vocab.json").write_text(json.dumps({named.get(k, k): v for k, v in theirs.encoder.items()}))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, theirs.bpe_ranks)), encoding="utf-8")
    return theirs


@pytest.mark.parametrize("form", ["vocab.json and merges.txt", "tokenizer.json"])
def test_captions_are_cleaned_as_open_clip_does(form, simple_tokenizer, tmp_path):
    if form == "tokenizer.json":
        transformers.CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        (tmp_path / "vocab.json").unlink()
    adopt_clip(str(tmp_path), tmp_path / "run")
    captions = [*thousand_captions()[:200], *CURLY]
    for path in (tmp_path, tmp_path / "run"):
        tokenizer = load_clip(path)[1]
        for caption in captions:
            assert tokenizer.encode([caption], 1000)[0, 1:-1].tolist() == simple_tokenizer.encode(caption), caption


def test_without_ftfy_a_caption_that_it_might_change_is_refused(simple_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = load_clip(tmp_path)[1]
    assert tokenizer.encode(["A dog's  bone"], 77)[0, 1:-1].tolist() == simple_tokenizer.encode("a dog's bone")
    for caption in ("don\u2019t", "it&rsquo;s", "\x1b[31mred"):
        with pytest.raises(UserError, match=r"caption .* is cleaned with ftfy .*pip install ftfy"):
            tokenizer.encode([caption], 77)


@given(st.from_regex(UNCHANGED_BY_FTFY, fullmatch=True))
def test_ftfy_changes_no_plain_text(caption):
    assert ftfy.fix_text(caption).split() == caption.split()


# --- preprocessing ----------------------------------------------------------------------------------------------------


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((200, 300), Image.Resampling.BICUBIC)
    surplus = [Image.fromarray(noise[:48, : 48 + more]) for more in (1, 2, 3, 5)]
    return [
        *surplus,
        Image.fromarray(noise),
        smooth,
        smooth.rotate(90, expand=True),
        Image.fromarray(noise[:20, :20, 0]),
    ]


@pytest.mark.parametrize("size", [{"shortest_edge": 48}, {"shortest_edge": 60}, {"height": 48, "width": 48}])
@pytest.mark.parametrize("resample", [2, 3])
def test_preprocessing_equals_that_of_transformers(size, resample):
    cropped = "shortest_edge" in size
    theirs = transformers.CLIPImageProcessor(
        size=size, crop_size=48, do_center_crop=cropped, resample=resample, image_std=[0.5, 0.25, 0.2]
    )
    config = PreprocessConfig(
        "shortest" if cropped else "stretch", max(size.values()), {2: "bilinear", 3: "bicubic"}[resample], "floor",
        tuple(theirs.image_mean), (0.5, 0.25, 0.2),
    )  # fmt: skip
    result = Preprocess(48, 3, config)(pictures())
    expected = theirs([p.convert("RGB") for p in pictures()], return_tensors="pt")["pixel_values"]
    assert result.shape == (8, 3, 48, 48)
    worst = (result - expected).abs().amax(dim=(0, 2, 3)) * torch.tensor([0.5, 0.25, 0.2]) * 255
    assert worst.max() < 1.01, "more than one grey level apart"


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_preprocessing_equals_that_of_open_clip(mode):
    settings = open_clip.transform.PreprocessCfg(size=48, resize_mode=mode)
    theirs = open_clip.transform.image_transform_v2(settings, is_train=False)
    ours = {"squash": "stretch"}.get(mode, mode)
    result = Preprocess(48, 3, PreprocessConfig(ours, mean=settings.mean, std=settings.std))(pictures())
    expected = torch.stack([theirs(picture) for picture in pictures()])
    worst = (result - expected).abs().amax(dim=(0, 2, 3)) * torch.tensor(settings.std) * 255
    assert worst.max() < 1.01, "more than one grey level apart"


def odd_modes() -> list[Image.Image]:
    """Pictures that are resized in another way before they become RGB than after."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 131, 4), dtype=np.uint8)
    smooth = Image.fromarray(noise[:9, :13]).resize((131, 90), Image.Resampling.BICUBIC)
    one_colour = smooth.convert("RGB").quantize(16)
    one_colour.info["transparency"] = 3
    rgb = smooth.convert("RGB")
    rgb.info["transparency"] = rgb.getpixel((0, 0))
    modes = [smooth, *(smooth.convert("RGB").convert(mode) for mode in ("LA", "P", "1", "CMYK", "L", "RGB"))]
    return [*modes, one_colour, rgb, one_colour.resize((30, 20)), smooth.resize((20, 30))]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_images_of_other_modes_are_converted_after_resizing_as_open_clip_does(mode, tmp_path):
    open_clip_files(tmp_path, small_open_clip())
    edit(tmp_path / "open_clip_config.json", preprocess_cfg__resize_mode=mode)
    _, _, ours = load_clip(tmp_path)
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    for picture in odd_modes():
        torch.testing.assert_close(ours([picture])[0], theirs(picture), rtol=0, atol=1e-6, msg=str(picture))


def test_images_of_other_modes_are_converted_before_resizing_as_transformers_does(tmp_path):
    huggingface_clip(tmp_path)
    _, _, ours = load_clip(tmp_path)
    theirs = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    for picture in odd_modes():
        expected = theirs(picture, return_tensors="pt")["pixel_values"]
        assert (ours([picture]) - expected).abs().max() < 1.01 / 255 / 0.3, picture


@pytest.mark.parametrize("said", [None, {}, {"mean": [0.4, 0.5, 0.6]}, {"size": 224}])
def test_open_clip_images_have_the_size_of_the_tower_whatever_the_config_says(said, tmp_path):
    open_clip_files(tmp_path, small_open_clip())
    edit(tmp_path / "open_clip_config.json", preprocess_cfg=said)
    _, _, ours = load_clip(tmp_path)
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    for picture in pictures():
        grey_level = 1 / 255 / min(ours.config.std)
        assert (ours([picture])[0] - theirs(picture)).abs().max() < 1.01 * grey_level


def test_a_size_that_is_cut_after_resizing_goes_out_to_transformers():
    ours = Preprocess(28, 3, PreprocessConfig("stretch", resize_to=32, cut="floor"))
    values = export_preprocess(CLIPConfig(8, VisionConfig(28, 3), preprocess=ours.config))
    theirs = transformers.CLIPImageProcessor(**values)(pictures()[0], return_tensors="pt")["pixel_values"]
    assert (ours(pictures()[:1]) - theirs).abs().max() < 1.01 / 255 / 0.5


def test_images_that_are_surrounded_for_their_patches_go_out_to_transformers():
    picture = pictures()[0].crop((0, 0, 13, 13))
    ours = Preprocess(14, 3, PreprocessConfig("stretch", resize_to=13))
    values = export_preprocess(CLIPConfig(8, VisionConfig(14, 3), preprocess=ours.config))
    theirs = transformers.CLIPImageProcessor(**values)(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours([picture]), theirs, atol=1e-5, rtol=0)


def test_our_garments_pass_through_a_large_colour_clip():
    preprocess = Preprocess(224, 3, PreprocessConfig("shortest", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)))
    x = preprocess(torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8))
    assert x.shape == (2, 3, 224, 224)
    colours = x * 0.5 + torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(colours[:, 0], colours[:, 2])

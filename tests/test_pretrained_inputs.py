"""What travels with a pretrained CLIP's weights: its tokenizer and its preprocessing."""

import json

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
import transformers
from foreign import AWKWARD, END, START, WORDS, edit, huggingface_clip, open_clip_files, small_open_clip
from PIL import Image
from tokenizers import models, pre_tokenizers, trainers

from unclip.clip import CLIPConfig, load_clip
from unclip.clip.huggingface import write_preprocess
from unclip.clip.preprocess import Preprocess, PreprocessConfig
from unclip.clip.vision import VisionConfig

# --- tokenizers -------------------------------------------------------------------------------------------------------


def clip_vocabulary(folder) -> None:
    """vocab.json and merges.txt of a tokenizer with CLIP's own splitting, learned on a few sentences."""
    core = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=[*letters], end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator([*WORDS, *AWKWARD, "it's the small dogs' own photos of photographs"] * 3, trainer)
    core.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for letter in letters:  # every byte, also at the end of a word: nothing is unknown
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    vocabulary |= {START: len(vocabulary), END: len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


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
    with pytest.warns(UserWarning, match="is cut to"):
        found = tokenizer.encode(captions, 77)
    assert torch.equal(found, expected["input_ids"])
    assert found.unique().numel() > 50


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
    found = Preprocess(48, 3, config)(pictures())
    expected = theirs([p.convert("RGB") for p in pictures()], return_tensors="pt")["pixel_values"]
    assert found.shape == (8, 3, 48, 48)
    worst = (found - expected).abs().amax(dim=(0, 2, 3)) * torch.tensor([0.5, 0.25, 0.2]) * 255
    assert worst.max() < 1.01, "more than one grey level apart"


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_preprocessing_equals_that_of_open_clip(mode):
    settings = open_clip.transform.PreprocessCfg(size=48, resize_mode=mode)
    theirs = open_clip.transform.image_transform_v2(settings, is_train=False)
    ours = {"squash": "stretch"}.get(mode, mode)
    found = Preprocess(48, 3, PreprocessConfig(ours, mean=settings.mean, std=settings.std))(pictures())
    expected = torch.stack([theirs(picture) for picture in pictures()])
    worst = (found - expected).abs().amax(dim=(0, 2, 3)) * torch.tensor(settings.std) * 255
    assert worst.max() < 1.01, "more than one grey level apart"


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
    values = write_preprocess(CLIPConfig(8, VisionConfig(28, 3), preprocess=ours.config))
    theirs = transformers.CLIPImageProcessor(**values)(pictures()[0], return_tensors="pt")["pixel_values"]
    assert (ours(pictures()[:1]) - theirs).abs().max() < 1.01 / 255 / 0.5


def test_our_garments_pass_through_a_large_colour_clip():
    preprocess = Preprocess(224, 3, PreprocessConfig("shortest", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)))
    x = preprocess(torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8))
    assert x.shape == (2, 3, 224, 224)
    colours = x * 0.5 + torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(colours[:, 0], colours[:, 2])

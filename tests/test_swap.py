"""Our CLIP goes out to transformers, and others are swapped in."""

import json
import shutil
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from conftest import assert_one_error_line, run_program
from foreign import (
    WORDS,
    assert_equal_to_transformers,
    clip_vocabulary,
    huggingface_clip,
    open_clip_files,
    small_open_clip,
)
from PIL import Image

from unclip import UnCLIP
from unclip.clip import load_clip
from unclip.clip.export import export
from unclip.clip.pretrained import adopt_clip, load_clip_bundle
from unclip.errors import UserError
from unclip.store.checksums import sha256


def test_our_clip_goes_out_to_transformers_and_comes_back_to_the_bit(trained, tmp_path):
    out = tmp_path / "out"
    export(trained.folder, out)
    ours, tokenizer, preprocess = load_clip(trained.folder)
    model = transformers.CLIPModel.from_pretrained(out).eval()
    ids = tokenizer.encode(["an image of a dark sneaker", "a bag", ""], ours.config.text.context)
    assert_equal_to_transformers(model, ours, ids, (ids == tokenizer.end_id).int().argmax(dim=1) + 1)
    theirs = transformers.AutoTokenizer.from_pretrained(out)(["An image  of a dark sneaker", "a bag", ""], padding=True)
    assert theirs["input_ids"] == ids.tolist()

    back, again, preprocess_again = load_clip(out)
    assert replace(back.config, preprocess=ours.config.preprocess) == ours.config
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters(), strict=True))
    assert torch.equal(again.encode(["a Dark bag", "boots"], 32), tokenizer.encode(["a Dark bag", "boots"], 32))
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(preprocess_again(images), preprocess(images))


def test_the_tokenizer_class_that_would_read_other_tokens_refuses(trained, tmp_path):
    out = tmp_path / "out"
    export(trained.folder, out)
    with pytest.raises(Exception, match=r"open.it.with.transformers\.AutoTokenizer,.not.CLIPTokenizer"):
        transformers.CLIPTokenizer.from_pretrained(out)
    ids = load_clip(trained.folder)[1].encode(["a dark bag"], 32)
    assert transformers.CLIPProcessor.from_pretrained(out)(text=["a dark bag"])["input_ids"] == ids.tolist()


def test_a_tokenizer_of_clip_s_own_kind_is_read_by_either_class(tmp_path):
    huggingface_clip(tmp_path / "clip", {"vocab_size": 2000, "eos_token_id": 2})
    (tmp_path / "clip" / "tokenizer.json").unlink()
    clip_vocabulary(tmp_path / "clip")
    out = tmp_path / "out"
    export(tmp_path / "clip", out)
    ids = load_clip(out)[1].encode(WORDS, 77).tolist()
    for kind in (transformers.AutoTokenizer, transformers.CLIPTokenizer):
        assert kind.from_pretrained(out)(WORDS, padding=True)["input_ids"] == ids


def test_a_grey_clip_sees_colour_images_in_transformers_as_it_does_here(trained, tmp_path):
    out = tmp_path / "out"
    export(trained.folder, out)
    clip, _, preprocess = load_clip(trained.folder)
    assert clip.config.vision.channels == 1
    model, processor = (kind.from_pretrained(out) for kind in (transformers.CLIPModel, transformers.CLIPProcessor))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 7, 4), dtype=np.uint8))
    smooth = noise.resize((60, 40), Image.Resampling.BICUBIC)
    pictures = [smooth, *(smooth.convert("RGB").convert(mode) for mode in ("RGB", "L", "P", "1"))]
    with torch.inference_mode():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        theirs = model.get_image_features(pixels).pooler_output
        ours = clip.encode_image(preprocess(pictures))
    assert torch.cosine_similarity(theirs, ours).min() > 0.999


def test_differences_of_transformers_are_reported_and_kept(tmp_path):
    """For an open_clip CLIP: where the middle is cut out, when images become RGB, how captions are cleaned."""
    model = open_clip_files(tmp_path / "clip", small_open_clip())
    out = tmp_path / "out"
    differences = export(tmp_path / "clip", out)
    for words in ("one pixel", "palette", "ftfy"):
        assert sum(words in difference for difference in differences) == 1
    clip, tokenizer, preprocess = load_clip(tmp_path / "clip")
    back, again, preprocess_again = load_clip(out)
    assert (preprocess.config.cut, preprocess.config.convert, tokenizer.cleaning) == ("round", "last", "lower")
    assert preprocess_again.config == preprocess.config
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), back.parameters(), strict=True))
    captions = ["don\u2019t  Stop &amp; go", *WORDS]
    assert torch.equal(again.encode(captions, 20), tokenizer.encode(captions, 20))
    assert model.logit_scale.exp().item() == pytest.approx(back.scale().item())


def test_our_clip_swapped_in_from_huggingface_s_format_gives_the_same_samples(trained, tiny, tmp_path):
    """The prior is trained on the CLIP that was exported and read back; the decoder accepts it as its own."""
    export(trained.folder, tmp_path / "hf")
    run = tmp_path / "run"
    done = run_program("train_prior.py", "--preset", "tiny", "--clip", tmp_path / "hf", "--out", run)
    assert done.code == 0, done.err
    shutil.copytree(trained.folder / "decoder", run / "decoder")
    captions = ["an image of a dark sneaker", "a bag"]
    ours, theirs = (pipe(captions, n=2, steps=4) for pipe in (UnCLIP.from_pretrained(run), tiny))
    assert np.array_equal(ours.images, theirs.images)
    shutil.rmtree(tmp_path / "hf")
    assert UnCLIP.from_pretrained(run), "the pipeline needs nothing else"


def test_stages_and_pipeline_on_a_clip_of_other_sizes(tmp_path):
    """Token features of width 32, embeddings of width 24, images of 3x56x56; the garments have 1x28x28 pixels."""
    huggingface_clip(tmp_path / "clip", vision={"image_size": 56, "patch_size": 14})
    run = tmp_path / "run"
    limits = ("--preset", "tiny", "--train.steps", "3", "--data.limit", "300", "--out", run)
    for arguments in (("train_prior.py", "--clip", tmp_path / "clip"), ("train_decoder.py",)):
        done = run_program(*arguments, *limits)
        assert done.code == 0, done.err
    pipe = UnCLIP.from_pretrained(run)
    assert (pipe.prior.config.network.embed_dim, pipe.prior.config.network.text_width) == (24, 32)
    assert pipe(["a photo of a dog"], steps=3).images.shape == (1, 28, 28, 1)
    assert pipe.encode_image(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 24)
    origin = json.loads((run / "clip" / "config.json").read_text())
    weights = (tmp_path / "clip" / "model.safetensors").read_bytes()
    assert origin["training"]["pretrained"] == str(tmp_path / "clip")
    assert origin["training"]["sha256"] == {"model.safetensors": sha256(weights)}


def test_a_pipeline_keeps_the_clip_that_it_has(trained, tmp_path, monkeypatch):
    huggingface_clip(tmp_path / "one")
    huggingface_clip(tmp_path / "two", {"num_hidden_layers": 1})
    adopt_clip(str(tmp_path / "one"), tmp_path / "run")
    adopt_clip(str(tmp_path / "one"), tmp_path / "run")  # the same command again
    with pytest.raises(UserError, match="already holds a CLIP"):
        adopt_clip(str(tmp_path / "two"), tmp_path / "run")
    opened = load_clip_bundle(tmp_path / "run")
    assert opened.manifest.complete
    assert opened.manifest.training["pretrained"] == str(tmp_path / "one")
    monkeypatch.chdir(tmp_path / "two")
    adopt_clip("../one", tmp_path / "run two")
    assert load_clip_bundle(tmp_path / "run two").manifest.training["pretrained"] == str(tmp_path / "one")
    adopt_clip(str(trained.folder), tmp_path / "ours")
    expected = replace(
        load_clip_bundle(trained.folder).manifest, provenance={}
    )  # the first part trained on it records it
    assert load_clip_bundle(tmp_path / "ours").manifest == expected


def test_clip_that_is_nowhere_is_one_line_that_says_so(script, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = script("train_prior", "--clip", "nobody/such-clip", "--out", tmp_path / "run")
    assert_one_error_line(done, "nobody/such-clip")
    assert not (tmp_path / "run").exists()

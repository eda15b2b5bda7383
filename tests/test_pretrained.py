"""Pretrained CLIPs in our module: against transformers and open_clip, on random weights of several shapes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from foreign import (
    END,
    WORDS,
    assert_equal_to_transformers,
    edit,
    huggingface_clip,
    open_clip_files,
    small_open_clip,
    word_tokenizer,
)

from unclip.clip import load_clip
from unclip.clip.pretrained import adopt_clip
from unclip.errors import UserError

SHAPES = {
    "quick_gelu": ({}, {}, 24),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}, 40),
    "legacy eos": ({"eos_token_id": 2}, {}, 24),
    "grey, other eps": ({"layer_norm_eps": 1e-3}, {"num_channels": 1, "layer_norm_eps": 1e-4}, 16),
    "patches that leave a rest": ({}, {"image_size": 30, "patch_size": 7}, 24),
    "odd mlp": ({"intermediate_size": 77}, {"intermediate_size": 131, "num_attention_heads": 6}, 24),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_huggingface_weights_give_what_transformers_gives(shape, tmp_path):
    model = huggingface_clip(tmp_path, *SHAPES[shape])
    clip, tokenizer, _ = load_clip(tmp_path)
    ids = tokenizer.encode([*WORDS, ""], clip.config.text.context)
    lengths = (ids == tokenizer.end_id).int().argmax(dim=1) + 1
    assert lengths.unique().numel() > 1, "no caption is padded"
    assert_equal_to_transformers(model, clip, ids, lengths)
    assert_equal_to_transformers(model, clip, ids[1:2, : lengths[1]], lengths[1:2])
    assert torch.equal(clip.text.mask(ids), torch.arange(ids.shape[1]) < lengths[:, None])


def test_objects_of_transformers_are_copied_with_their_processor(tmp_path):
    model = huggingface_clip(tmp_path)
    processor = SimpleNamespace(save_pretrained=lambda folder: shutil.copytree(tmp_path, folder, dirs_exist_ok=True))
    clip, tokenizer, preprocess = load_clip(model, processor)
    from_folder, _, expected = load_clip(tmp_path)
    assert tokenizer.encode(WORDS, 9).shape[0] == len(WORDS)
    assert preprocess.config == expected.config
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, from_folder.state_dict()[name]), name
    with pytest.warns(UserWarning, match=r"no preprocessor_config\.json"):
        assert load_clip(model)[1] is None


def test_other_objects_are_refused_in_one_line(tmp_path):
    model = huggingface_clip(tmp_path)
    with pytest.raises(UserError, match="takes a CLIPModel, not a CLIPVisionModel"):
        load_clip(transformers.CLIPVisionModel(model.config.vision_config))
    with pytest.raises(UserError, match="load_clip takes a path, a name on the Hub, or a CLIPModel"):
        load_clip(torch.nn.Linear(2, 2))


def test_vit_b_32_of_transformers(tmp_path):
    model = huggingface_clip(
        tmp_path,
        {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 8, "max_position_embeddings": 77},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "image_size": 224, "patch_size": 32},
        512,
    )  # fmt: skip
    clip, tokenizer, preprocess = load_clip(tmp_path)
    ids = tokenizer.encode(WORDS, 77)
    assert_equal_to_transformers(model, clip, ids, (ids == tokenizer.end_id).int().argmax(dim=1) + 1)
    assert preprocess(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 3, 224, 224)


def assert_equal_to_open_clip(model, clip, ids):
    size = clip.config.vision.image_size
    pixels = torch.randn(3, 3, size, size)
    padded = torch.zeros(len(ids), clip.config.text.context, dtype=torch.long)  # open_clip pads with 0, to the full
    mask = clip.text.mask(ids)
    padded[:, : ids.shape[1]] = ids.where(mask, 0)
    tower = getattr(model, "text", model)
    with torch.inference_mode():
        hidden = tower.token_embedding(padded) + tower.positional_embedding
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask))
        text, encodings = clip.encode_text(ids)
        padded_text, _ = clip.encode_text(padded)
        close = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(clip.encode_image(pixels), model.encode_image(pixels, normalize=True), **close)
        torch.testing.assert_close(text, model.encode_text(padded, normalize=True), **close)
        torch.testing.assert_close(padded_text, text, **close)
        torch.testing.assert_close(encodings[mask], hidden[:, : ids.shape[1]][mask], **close)


OPEN_CLIPS = {
    "gelu": ({}, {}, {}, False),
    "quick_gelu": ({"quick_gelu": True}, {}, {}, False),
    "mlp ratios": ({}, {"mlp_ratio": 2.3333}, {"mlp_ratio": 3.1}, False),
    "text apart": ({"custom_text": True}, {"patch_dropout": 0.3}, {}, True),
    "eps": ({}, {"norm_kwargs": {"eps": 1e-3}}, {"norm_kwargs": {"eps": 1e-4}}, False),
}


@pytest.mark.parametrize("kind", OPEN_CLIPS)
def test_open_clip_weights_give_what_open_clip_gives(kind, tmp_path):
    (top, vision, text, custom), config = OPEN_CLIPS[kind], small_open_clip()
    config["vision_cfg"] |= vision
    config["text_cfg"] |= text
    model = open_clip_files(tmp_path, config | top, custom)
    clip, tokenizer, preprocess = load_clip(tmp_path)
    assert_equal_to_open_clip(model, clip, tokenizer.encode([*WORDS, ""], 20))
    assert preprocess.config.mean == (0.48, 0.46, 0.41)
    from_file, _, _ = load_clip(tmp_path / "open_clip_model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), from_file.parameters(), strict=True))


def test_repository_that_serves_other_libraries_too_is_read_by_the_weights_that_fit(tmp_path):
    """As timm's do: model.safetensors is of the image tower alone, and config.json of another library."""
    model = open_clip_files(tmp_path, small_open_clip())
    safetensors.torch.save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    clip, tokenizer, _ = load_clip(tmp_path)
    assert_equal_to_open_clip(model, clip, tokenizer.encode(WORDS, 20))


def test_old_configs_whose_second_dictionary_overrules_the_first(tmp_path):
    huggingface_clip(tmp_path, {"hidden_act": "gelu"}, {"hidden_act": "gelu"})
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config_dict"] = {k: v for k, v in values["text_config"].items() if k != "hidden_act"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    clip, tokenizer, _ = load_clip(tmp_path)
    assert clip.config.text.activation == model.config.text_config.hidden_act
    ids = tokenizer.encode(WORDS, 20)
    assert_equal_to_transformers(model, clip, ids, (ids == tokenizer.end_id).int().argmax(dim=1) + 1)


def test_tokenizer_that_was_saved_with_fixed_padding_is_read(tmp_path):
    huggingface_clip(tmp_path)
    expected = load_clip(tmp_path)[1].encode(WORDS, 20)
    core = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.enable_padding(length=20, pad_id=5, pad_token=core.id_to_token(5))
    core.enable_truncation(20)
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_clip(tmp_path)[1]
    assert tokenizer.pad_id == 5
    found = tokenizer.encode(WORDS, 20)
    assert torch.equal(found.where(found != 5, tokenizer.end_id), expected)


@pytest.mark.parametrize(
    "changes",
    [{"projection_dim": None}, {"text_config__hidden_size": "32"}, {"vision_config__num_attention_heads": 0},
     {"vision_config__image_size": None}, {"text_config__layer_norm_eps": None}],
)  # fmt: skip
def test_malformed_config_is_refused(changes, tmp_path):
    huggingface_clip(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(UserError):
        load_clip(tmp_path)


def test_one_weights_file_with_two_configs_is_two_clips(tmp_path):
    huggingface_clip(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    edit(tmp_path / "two" / "config.json", text_config__hidden_act="gelu")
    adopt_clip(str(tmp_path / "one"), tmp_path / "run")
    with pytest.raises(UserError, match="already holds a CLIP"):
        adopt_clip(str(tmp_path / "two"), tmp_path / "run")


def test_repository_of_both_formats(tmp_path):
    theirs = open_clip_files(tmp_path, small_open_clip())
    core = (tmp_path / "tokenizer.json").read_text()
    model = huggingface_clip(tmp_path)
    (tmp_path / "tokenizer.json").write_text(core)
    from_huggingface, tokenizer, _ = load_clip(tmp_path / "model.safetensors")
    ids = tokenizer.encode(WORDS, 20)
    assert_equal_to_transformers(model, from_huggingface, ids, (ids == tokenizer.end_id).int().argmax(dim=1) + 1)
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        assert_equal_to_open_clip(theirs, load_clip(path)[0], ids)


def test_open_clip_that_pools_at_its_own_end_token(tmp_path):
    config = small_open_clip()
    config["text_cfg"] |= {"pool_type": "eos", "eos_id": word_tokenizer(400).token_to_id(END)}
    model = open_clip_files(tmp_path, config)
    clip, tokenizer, _ = load_clip(tmp_path)
    assert clip.config.text.pooling == "eos"
    assert_equal_to_open_clip(model, clip, tokenizer.encode(WORDS, 20))


def test_openai_state_dict_of_the_shape_of_vit_l_14(tmp_path):
    """open_clip with quick_gelu is OpenAI's model: its state dict alone, without a config, says everything.

    Widths and patches are ViT-L/14's; of its blocks a few.
    """
    config = {
        "embed_dim": 768,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 3, "width": 1024, "patch_size": 14},
        "text_cfg": {"context_length": 77, "width": 768, "heads": 12, "layers": 2},
    }
    model = open_clip_files(tmp_path, config)
    (tmp_path / "open_clip_config.json").unlink()
    clip, tokenizer, preprocess = load_clip(tmp_path)
    assert clip.config.vision == replace(clip.config.vision, image_size=224, heads=16, activation="quick_gelu")
    assert_equal_to_open_clip(model, clip, tokenizer.encode(WORDS[:2], 77))
    assert preprocess.config.resize == "shortest"

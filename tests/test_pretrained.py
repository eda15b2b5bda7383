"""Pretrained CLIPs in our module: against transformers and open_clip, on random weights of several shapes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from conftest import assert_one_error_line, run_python
from PIL import Image
from tokenizers import models, pre_tokenizers, processors, trainers

from unclip import UnCLIP
from unclip.checkpoint import sha256
from unclip.clip import load_clip
from unclip.clip.export import ExportOptions, export
from unclip.clip.preprocess import OPENAI_MEAN, Preprocess, PreprocessConfig
from unclip.clip.pretrained import adopt, open_clip_at
from unclip.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["a photo of a dog", "an image of a small grey cat", "the dog's bone, 12 cats!", "une forêt verte 🌲"]
AWKWARD = [
    "", " ", "é", "e\u0301", "ÀÉ", "it's", "don't  stop", "a\tb\nc", "12345", "🧑‍🚀🚀", "日本語", "ﬁ", "x" * 300,
    "I'LL", "a_b-c/d", "\u200b", "&amp; <b>", "...!!!", "İ", "ß", "½", "\x00", "a <|endoftext|> b", "<|startoftext|>",
    "< |endoftext| >", "0123456789" * 9,
]  # fmt: skip


def word_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A small tokenizer with CLIP's parts, whose specials have the highest ids, as CLIP's have."""
    core = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator([*WORDS, *"abcdefghijklmnopqrstuvwxyz-/"], trainer)
    core.add_special_tokens([START, END])
    end, start = (core.token_to_id(token) for token in (END, START))
    core.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    return core


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Move what is born as one or zero, so that no norm or bias can be mixed up unseen."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save_tokenizer(folder, vocab_size: int = 400) -> tokenizers.Tokenizer:
    folder.mkdir(exist_ok=True)
    core = word_tokenizer(vocab_size)
    core.save(str(folder / "tokenizer.json"))
    return core


def huggingface_clip(folder, text=None, vision=None, projection_dim=24):
    core = save_tokenizer(folder)
    size = core.get_vocab_size()
    torch.manual_seed(0)
    text = {"vocab_size": size + 3, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 20, "eos_token_id": core.token_to_id(END),
            "bos_token_id": core.token_to_id(START), "pad_token_id": 1} | (text or {})  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
              "image_size": 28, "patch_size": 7} | (vision or {})  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    model = shake(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    image_size, channels = vision["image_size"], vision.get("num_channels", 3)
    preprocessing = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": image_size},
                     "crop_size": {"height": image_size, "width": image_size}, "do_convert_rgb": channels == 3,
                     "image_mean": [0.4] * channels, "image_std": [0.3] * channels}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


def assert_equal_to_transformers(model, clip, ids, lengths):
    """Unit embeddings, and the encodings of what is no padding, to 1e-5."""
    size = clip.config.vision.image_size
    pixels = torch.randn(3, clip.config.vision.channels, size, size)
    attention = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.inference_mode():
        theirs = model(input_ids=ids, pixel_values=pixels, attention_mask=attention.long())
        images, (text, encodings) = clip.encode_image(pixels), clip.encode_text(ids)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(images, theirs.image_embeds, **close)
    torch.testing.assert_close(text, theirs.text_embeds, **close)
    hidden = theirs.text_model_output.last_hidden_state
    torch.testing.assert_close(encodings[attention], hidden[attention], **close)
    assert clip.scale().item() == pytest.approx(min(model.logit_scale.exp().item(), 100), rel=1e-5)


SHAPES = {
    "quick_gelu": ({}, {}, 24),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}, 40),
    "legacy eos": ({"eos_token_id": 2}, {}, 24),
    "grey, other eps": ({"layer_norm_eps": 1e-3}, {"num_channels": 1, "layer_norm_eps": 1e-4}, 16),
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


def open_clip_files(folder, config: dict, custom: bool = False):
    core = save_tokenizer(folder)
    torch.manual_seed(0)
    config["text_cfg"] |= {"vocab_size": max(core.get_vocab_size(), config["text_cfg"].get("vocab_size", 0))}
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = shake(kind(**arguments))
    safetensors.torch.save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
    preprocessing = {"size": config["vision_cfg"]["image_size"], "mode": "RGB", "mean": [0.48, 0.46, 0.41],
                     "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "shortest"}  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    return model


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


def small_open_clip() -> dict:
    return {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 48, "head_width": 16, "patch_size": 7},
        "text_cfg": {"context_length": 20, "width": 32, "heads": 4, "layers": 2},
    }


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
    adopt(str(tmp_path / "one"), tmp_path / "run")
    with pytest.raises(UserError, match="already holds a CLIP"):
        adopt(str(tmp_path / "two"), tmp_path / "run")


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
    """open_clip with quick_gelu is OpenAI's model: its state dict alone, without a config, says everything."""
    config = {
        "embed_dim": 768,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
        "text_cfg": {"context_length": 77, "width": 768, "heads": 12, "layers": 12},
    }
    model = open_clip_files(tmp_path, config)
    (tmp_path / "open_clip_config.json").unlink()
    clip, tokenizer, preprocess = load_clip(tmp_path)
    assert clip.config.vision == replace(clip.config.vision, image_size=224, heads=16, activation="quick_gelu")
    assert_equal_to_open_clip(model, clip, tokenizer.encode(WORDS[:2], 77))
    assert preprocess.config.resize == "shortest"


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


def test_our_garments_pass_through_a_large_colour_clip():
    preprocess = Preprocess(224, 3, PreprocessConfig("shortest", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)))
    x = preprocess(torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8))
    assert x.shape == (2, 3, 224, 224)
    colours = x * 0.5 + torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(colours[:, 0], colours[:, 2])


# --- refusals ---------------------------------------------------------------------------------------------------------


def edit(path, **changes) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        place = values
        *way, last = key.split("__")
        for part in way:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "siglip"}, "siglip"),
        ({"text_config__hidden_act": "gelu_new"}, "gelu_new"),
        ({"vision_config__patch_size": [7, 14]}, "patch_size"),
        ({"text_config": None}, "text_config"),
        ({"vision_config__num_hidden_layers": 1}, "vision_model.encoder.layers.1"),
        ({"vision_config__num_hidden_layers": 3}, "vision.blocks.2"),
        ({"projection_dim": 99}, "projection"),
        ({"text_config__eos_token_id": 7}, "token 7"),
    ],
)
def test_huggingface_config_that_cannot_be_held_is_refused_by_name(changes, named, tmp_path):
    huggingface_clip(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=named):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crop_size": {"height": 20, "width": 20}}, "crop_size"),
        ({"resample": 1}, "resample"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused_by_name(changes, named, tmp_path):
    huggingface_clip(tmp_path)
    edit(tmp_path / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=named):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "vit_base_patch16_siglip_224"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "layers"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "roberta-base"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask"),
        ("text_cfg", {"pool_type": "last"}, "last"),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        (None, {"init_logit_bias": -10}, "init_logit_bias"),
        (None, {"multimodal_cfg": {"layers": 2}}, "multimodal_cfg"),
    ],
)
def test_open_clip_config_that_cannot_be_held_is_refused_by_name(part, changes, named, tmp_path):
    open_clip_files(tmp_path, small_open_clip())
    edit(
        tmp_path / "open_clip_config.json",
        **{"__".join(filter(None, ["model_cfg", part, k])): v for k, v in changes.items()},
    )
    with pytest.raises(UserError, match=named):
        load_clip(tmp_path)


def test_resnet_state_dict_is_refused_by_name(tmp_path):
    safetensors.torch.save_file({"visual.layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "RN50.safetensors")
    with pytest.raises(UserError, match="ResNet"):
        load_clip(tmp_path / "RN50.safetensors")


def test_folder_without_weights_is_refused(tmp_path):
    huggingface_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="0 safetensors files"):
        load_clip(tmp_path)


def test_weights_without_a_tokenizer_open_but_make_no_pipeline(tmp_path):
    huggingface_clip(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").unlink()
    assert load_clip(tmp_path / "clip")[1] is None
    with pytest.raises(UserError, match="holds no tokenizer"):
        adopt(str(tmp_path / "clip"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_preprocessing_that_is_missing_is_assumed_aloud_and_that_of_newer_files_is_read(tmp_path):
    huggingface_clip(tmp_path)
    ours = load_clip(tmp_path)[2].config
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="as for OpenAI's CLIP"):
        assert load_clip(tmp_path)[2].config.mean == OPENAI_MEAN
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert load_clip(tmp_path)[2].config == ours


def test_pickled_weights_are_never_opened(tmp_path):
    huggingface_clip(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, which could run code"):
        load_clip(tmp_path)


# --- out, and back in -------------------------------------------------------------------------------------------------


def test_our_clip_goes_out_to_transformers_and_comes_back_to_the_bit(trained, tmp_path):
    out = export(ExportOptions(trained.folder, out=tmp_path / "out"))
    ours, tokenizer, preprocess = load_clip(trained.folder)
    model = transformers.CLIPModel.from_pretrained(out).eval()
    ids = tokenizer.encode(["an image of a dark sneaker", "a bag", ""], ours.config.text.context)
    assert_equal_to_transformers(model, ours, ids, (ids == tokenizer.end_id).int().argmax(dim=1) + 1)
    theirs = transformers.AutoTokenizer.from_pretrained(out)(["An image  of a dark sneaker", "a bag", ""], padding=True)
    assert theirs["input_ids"] == ids.tolist()

    back, again, preprocess_again = load_clip(out)
    assert back.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters(), strict=True))
    assert torch.equal(again.encode(["a Dark bag", "boots"], 32), tokenizer.encode(["a Dark bag", "boots"], 32))
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(preprocess_again(images), preprocess(images))


def test_our_clip_swapped_in_from_huggingface_s_format_gives_the_same_samples(trained, tiny, tmp_path):
    """The prior is trained anew on the CLIP that went out and came back; the decoder accepts it as the one it knows."""
    export(ExportOptions(trained.folder, out=tmp_path / "hf"))
    run = tmp_path / "run"
    done = run_python("train_prior.py", "--preset", "tiny", "--clip", tmp_path / "hf", "--out", run)
    assert done.code == 0, done.err
    shutil.copytree(trained.folder / "decoder", run / "decoder")
    captions = ["an image of a dark sneaker", "a bag"]
    ours, theirs = (pipe(captions, n=2, steps=4) for pipe in (UnCLIP.from_pretrained(run), tiny))
    assert np.array_equal(ours.images, theirs.images)
    shutil.rmtree(tmp_path / "hf")
    assert UnCLIP.from_pretrained(run), "the pipeline needs nothing else"


def test_stages_and_pipeline_on_a_clip_of_other_sizes(tmp_path):
    """Text encodings of width 32, embeddings of width 24, images of 3x56x56: garments of 1x28x28 pass through."""
    huggingface_clip(tmp_path / "clip", vision={"image_size": 56, "patch_size": 14})
    run = tmp_path / "run"
    limits = ("--preset", "tiny", "--train.steps", "3", "--data.limit", "300", "--out", run)
    for arguments in (("train_prior.py", "--clip", tmp_path / "clip"), ("train_decoder.py",)):
        done = run_python(*arguments, *limits)
        assert done.code == 0, done.err
    pipe = UnCLIP.from_pretrained(run)
    assert (pipe.prior.config.embed_dim, pipe.prior.config.text_width) == (24, 32)
    assert pipe(["a photo of a dog"], steps=3).images.shape == (1, 28, 28, 1)
    assert pipe.encode_image(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 24)
    origin = json.loads((run / "clip" / "config.json").read_text())
    weights = (tmp_path / "clip" / "model.safetensors").read_bytes()
    assert origin["training"]["pretrained"] == str(tmp_path / "clip")
    assert origin["training"]["sha256"] == {"model.safetensors": sha256(weights)}


def test_a_pipeline_keeps_the_clip_that_it_has(trained, tmp_path):
    huggingface_clip(tmp_path / "one")
    huggingface_clip(tmp_path / "two", {"num_hidden_layers": 1})
    adopt(str(tmp_path / "one"), tmp_path / "run")
    adopt(str(tmp_path / "one"), tmp_path / "run")  # the same command again
    with pytest.raises(UserError, match="already holds a CLIP"):
        adopt(str(tmp_path / "two"), tmp_path / "run")
    opened = open_clip_at(tmp_path / "run")
    assert opened.manifest.complete
    assert opened.manifest.training["pretrained"] == str(tmp_path / "one")
    adopt(str(trained.folder), tmp_path / "ours")
    assert open_clip_at(tmp_path / "ours").manifest == open_clip_at(trained.folder).manifest


def test_clip_that_is_nowhere_is_one_line_that_says_so(tmp_path):
    done = run_python("train_prior.py", "--clip", "nobody/such-clip", "--out", tmp_path / "run", HF_HUB_OFFLINE="1")
    assert_one_error_line(done, "nobody/such-clip")
    assert not (tmp_path / "run").exists()

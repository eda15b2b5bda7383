"""Small random CLIPs made by transformers and open_clip, and comparisons with ours."""

import json
import string

import open_clip
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors, trainers

START, END = "<|startoftext|>", "<|endoftext|>"


WORDS = ["a photo of a dog", "an image of a small grey cat", "the dog's bone, 12 cats!", "une forêt verte 🌲"]


AWKWARD = [
    "", " ", "é", "e\u0301", "ÀÉ", "it's", "don't  stop", "a\tb\nc", "12345", "🧑‍🚀🚀", "日本語", "ﬁ", "x" * 300,
    "I'LL", "a_b-c/d", "\u200b", "&amp; <b>", "...!!!", "İ", "ß", "½", "\x00", "a <|endoftext|> b", "<|startoftext|>",
    "< |endoftext| >", "0123456789" * 9,
]  # fmt: skip


def word_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A small tokenizer with CLIP's parts; its special tokens have the highest ids, as CLIP's have."""
    core = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    core.train_from_iterator([*WORDS, *string.ascii_lowercase, *string.digits, *string.punctuation], trainer)
    core.add_special_tokens([START, END])
    end, start = (core.token_to_id(token) for token in (END, START))
    core.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    return core


def clip_vocabulary(folder) -> None:
    """Write vocab.json and merges.txt of a tokenizer that splits words as CLIP does, trained on a few sentences."""
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


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Randomise weights that are initialised to one or zero, so that no mix-up of norms or biases stays unnoticed."""
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
    """Compare unit embeddings, and token features without padding, within 1e-5."""
    size = clip.config.vision.image_size
    pixels = torch.randn(3, clip.config.vision.channels, size, size)
    attention = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.inference_mode():
        seen = pixels.expand(-1, model.config.vision_config.num_channels, -1, -1)
        theirs = model(input_ids=ids, pixel_values=seen, attention_mask=attention.long())
        images, (text, encodings) = clip.encode_image(pixels), clip.encode_text(ids)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(images, theirs.image_embeds, **close)
    torch.testing.assert_close(text, theirs.text_embeds, **close)
    hidden = theirs.text_model_output.last_hidden_state
    torch.testing.assert_close(encodings[attention], hidden[attention], **close)
    assert clip.scale().item() == pytest.approx(min(model.logit_scale.exp().item(), 100), rel=1e-5)


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


def small_open_clip() -> dict:
    return {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 48, "head_width": 16, "patch_size": 7},
        "text_cfg": {"context_length": 20, "width": 32, "heads": 4, "layers": 2},
    }


def edit(path, **changes) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        place = values
        *way, last = key.split("__")
        for part in way:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(values))

"""Pretrained CLIPs that our module has no place for are refused by name."""

import json
import socket
from dataclasses import asdict

import huggingface_hub
import huggingface_hub.errors
import pytest
import safetensors.torch
import torch
from conftest import run_program
from foreign import edit, huggingface_clip, open_clip_files, small_open_clip

from unclip.clip import load_clip
from unclip.clip.preprocess_config import OPENAI_MEAN
from unclip.clip.pretrained import adopt_clip
from unclip.errors import UserError
from unclip.store.hub import REFUSALS
from unclip.store.manifest import Manifest
from unclip.store.sealed_json import write_record


def test_an_index_without_shards_is_refused(tmp_path):
    huggingface_clip(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config", {"model_type": "siglip"}, "siglip"),
        ("config", {"text_config__hidden_act": "gelu_new"}, "gelu_new"),
        ("config", {"vision_config__patch_size": [7, 14]}, "patch_size"),
        ("config", {"text_config": None}, "text_config"),
        ("config", {"vision_config__num_hidden_layers": 1}, "vision_model.encoder.layers.1"),
        ("config", {"vision_config__num_hidden_layers": 3}, "vision.blocks.2"),
        ("config", {"projection_dim": 99}, "projection"),
        ("config", {"text_config__eos_token_id": 7}, "token 7"),
        ("preprocessor_config", {"crop_size": {"height": 20, "width": 20}}, "crop_size"),
        ("preprocessor_config", {"resample": 1}, "resample"),
        ("preprocessor_config", {"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
        ("preprocessor_config", {"do_center_crop": False}, "do_center_crop"),
        ("preprocessor_config", {"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_what_huggingface_s_files_say_and_cannot_be_held_is_refused_by_name(file, changes, named, tmp_path):
    huggingface_clip(tmp_path)
    edit(tmp_path / f"{file}.json", **changes)
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
    with pytest.raises(UserError, match=r"holds no CLIP: .* nor a \.safetensors file"):
        load_clip(tmp_path)
    for name in "ab":
        safetensors.torch.save_file({}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"2 \.safetensors files; give the path of the one"):
        load_clip(tmp_path)


def test_weights_without_a_tokenizer_open_but_make_no_pipeline(tmp_path):
    huggingface_clip(tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").unlink()
    assert load_clip(tmp_path / "clip")[1] is None
    with pytest.raises(UserError, match="holds no tokenizer"):
        adopt_clip(str(tmp_path / "clip"), tmp_path / "run")
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


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        load_clip(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_refusal_is_not_wrapped_in_another(tmp_path):
    huggingface_clip(tmp_path / "hf")
    edit(tmp_path / "hf" / "config.json", model_type="siglip")
    config = tmp_path / "hf" / "config.json"
    assert refusal(tmp_path / "hf") == f"{config} describes a 'siglip' model; only CLIP models ('clip') can be read"
    open_clip_files(tmp_path / "open_clip", small_open_clip())
    edit(tmp_path / "open_clip" / "open_clip_config.json", model_cfg__embed_dim="24")
    assert refusal(tmp_path / "open_clip").count("config") == 1
    edit(tmp_path / "open_clip" / "open_clip_config.json", model_cfg={"vision_cfg": {}, "text_cfg": {}})
    assert refusal(tmp_path / "open_clip").endswith("'embed_dim' is missing")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json"])
def test_a_pointer_of_git_lfs_is_called_so(name, tmp_path):
    huggingface_clip(tmp_path)
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    said = refusal(tmp_path)
    assert said == f"{tmp_path / name} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json"])
def test_a_damaged_file_is_to_be_fetched_again(name, tmp_path):
    huggingface_clip(tmp_path)
    (tmp_path / name).write_bytes(b'{"a": \xff')
    if name == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "merges.txt").write_text("")
    assert str(tmp_path / name) in refusal(tmp_path)
    assert "train" not in refusal(tmp_path)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_pickled_weights_are_never_opened_but_their_conversion_is_told(named, tmp_path):
    huggingface_clip(tmp_path)
    expected = load_clip(tmp_path)[0]
    path = tmp_path / "pytorch_model.bin"
    torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), path)
    (tmp_path / "model.safetensors").unlink()
    said = refusal(tmp_path if named == "folder" else path)
    assert said.startswith(f"{path} could run code when it is read")
    command = said.split("convert it with: python -c ")[1]
    assert run_program("-c", command.strip('"')).code == 0
    found = load_clip(tmp_path)[0]
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_file_of_another_kind_is_no_weights(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt is not a file of weights; expected \.safetensors"):
        load_clip(tmp_path / "notes.txt")


def test_a_config_of_which_no_clip_can_be_built_is_named(tmp_path):
    huggingface_clip(tmp_path)
    edit(tmp_path / "config.json", vision_config__patch_size=99)
    assert refusal(tmp_path).startswith(f"no CLIP can be built as the config of {tmp_path} says: patch_size must be")


def test_another_stage_is_not_taken_for_a_clip(tmp_path):
    write_record(tmp_path / "prior" / "config.json", asdict(Manifest("prior")))
    assert refusal(tmp_path / "prior").endswith(
        f"holds a prior, not a CLIP; give the folder of its pipeline, {tmp_path}"
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # OpenAI's files are of a kind that PyTorch is giving up
def test_openai_s_own_file_is_converted_in_its_own_way(tmp_path):
    module = torch.jit.script(torch.nn.Linear(2, 3))
    module.save(str(tmp_path / "ViT-B-32.pt"))
    command = refusal(tmp_path).split("convert it with: python -c ")[1]
    assert run_program("-c", command.strip('"')).code == 0
    assert set(safetensors.torch.load_file(tmp_path / "ViT-B-32.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize("path", ["/no/such/clip", "checkpoints", "./a/b", "a/b.safetensors", "a/b/c", "~/clip"])
def test_a_wrong_path_is_not_asked_of_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(UserError) as caught:
        adopt_clip(path, tmp_path / "run")
    expected = "expected the path of a CLIP, or its name OWNER/NAME on the Hugging Face Hub"
    assert str(caught.value) == f"there is no folder or file {path}; {expected}"


@pytest.mark.parametrize("error", [*REFUSALS, "OddError"])
def test_what_the_hub_refuses_is_told_in_one_line(error, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise type(error, (Exception,), {})("404 {or} so\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert error == "OddError" or hasattr(huggingface_hub.errors, error)
    said = REFUSALS.get(error, "404 {or} so").replace("{revision}", "v2")
    with pytest.raises(UserError) as caught:
        adopt_clip("owner/name", tmp_path / "run", "v2")
    assert str(caught.value).endswith(
        f"no folder or file owner/name, and the Hugging Face Hub does not give it: {said}"
    )

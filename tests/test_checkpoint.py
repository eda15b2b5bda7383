"""Files on disk: what is saved comes back exactly, what is damaged is refused, what fails leaves no trace."""

import json
import shlex
from dataclasses import asdict, dataclass, field

import pytest
import torch
from conftest import contents, edit, files_under
from torch import nn

from unclip import UnCLIP
from unclip.errors import UserError
from unclip.settings import DecoderSettings, PriorSettings
from unclip.store import files
from unclip.store.checksums import sha256
from unclip.store.files import write_atomically
from unclip.store.formats import FORMAT
from unclip.store.index import read_index, read_sampling, write_index
from unclip.store.manifest import Manifest, check_lineage, read_manifest
from unclip.store.parts import load_part, load_weights, save_part
from unclip.store.sealed_json import read_json, read_record, write_json
from unclip.store.tensors import dump_tensors, load_tensors, stream_tensors


@dataclass(frozen=True)
class InnerConfig:
    rates: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class SmallConfig:
    width: int = 4
    inner: InnerConfig = field(default_factory=InnerConfig)


class Small(nn.Module):
    config_class = SmallConfig

    def __init__(self, config: SmallConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, 3)
        self.register_buffer("scale", torch.rand(2))


@pytest.fixture
def part(tmp_path):
    """A saved part: its folder, its model, its manifest."""
    torch.manual_seed(0)
    model = Small(SmallConfig(width=5, inner=InnerConfig((3, 4, 5))))
    manifest = Manifest("prior", parents={"clip": "c" * 64}, data={"name": "d"}, step=7, figures={"loss": 0.5})
    save_part(tmp_path / "run" / "prior", model, manifest)
    return tmp_path / "run" / "prior", model, manifest


def load(folder):
    return load_part(folder, Small)


def refusal(folder) -> str:
    """The message that a folder is refused with, in one line that names the folder."""
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder.parent) in message
    return message


# --- parts -----------------------------------------------------------------------------------------------------------


def test_saved_part_comes_back_exactly(part):
    folder, model, manifest = part
    loaded, found = load(folder)
    assert asdict(found) == json.loads(json.dumps(asdict(manifest)))
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert files_under(folder) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("place", [3, 60, -1], ids=["header length", "header", "weights"])
def test_flipped_byte_in_the_weights_is_refused(place, part):
    path = part[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "is damaged: its SHA-256 is" in refusal(part[0])


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights_are_refused(kept, part):
    path = part[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors is damaged" in refusal(part[0])


def test_missing_weights_are_refused(part):
    (part[0] / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(part[0])


def test_missing_manifest_names_the_command_that_trains_the_part(part):
    (part[0] / "config.json").unlink()
    assert f"train it with: python train_prior.py --out {part[0].parent}" in refusal(part[0])


def test_missing_pipeline_says_that_it_does_not_exist(tmp_path):
    message = refusal(tmp_path / "nowhere" / "decoder")
    assert "does not exist" in message
    assert "python train_decoder.py" in message


@pytest.mark.parametrize("content", ["", "{", "not json", '{"part": "prior",', b"\xff\xfe\x00", "[" * 50])
def test_manifest_that_is_not_json_is_refused(content, part):
    (part[0] / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "config.json is not readable JSON" in refusal(part[0])


@pytest.mark.parametrize("version", [0, 1, 2, "3", None])
def test_other_format_version_is_refused(version, part):
    edit(part[0], format=version)
    assert f"has format {version}, but this version reads the formats 3 to 5; train that part again" in refusal(part[0])


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}"])
def test_json_that_is_not_a_manifest_is_refused(content, part):
    (part[0] / "config.json").write_text(content)
    assert "has format None" in refusal(part[0])


def test_changed_manifest_is_refused(part):
    path = part[0] / "config.json"
    path.write_text(path.read_text().replace('"step": 7', '"step": 8'))
    assert "config.json has changed since it was written" in refusal(part[0])


def test_unknown_manifest_field_is_refused(part):
    edit(part[0], colour="blue")
    assert "colour" in refusal(part[0])


@pytest.mark.parametrize("model", [{"width": 5, "wings": 2}, {"width": 5, "inner": {"wings": 2}}])
def test_unknown_config_field_is_named(model, part):
    edit(part[0], model=model)
    assert "has the unknown field 'wings'" in refusal(part[0])


def test_config_of_another_model_is_refused_with_both_shapes(part):
    edit(part[0], model={"width": 6})
    message = refusal(part[0])
    assert "holds (3, 5) for linear.weight, but the model expects (3, 6)" in message


@pytest.mark.parametrize(
    "model", [{"width": "five"}, {"width": None}, {"width": 5.0}, {"width": True}, [], {"inner": 3}]
)
def test_ill_typed_config_is_refused(model, part):
    edit(part[0], model=model)
    assert "config.json" in refusal(part[0])


def test_weights_with_a_key_too_many_or_too_few_are_refused(part):
    model = part[1]
    tensors = dict(model.state_dict())
    with pytest.raises(UserError, match="holds nothing for scale, but the model expects \\(2,\\)"):
        load_weights(model, {k: v for k, v in tensors.items() if k != "scale"}, part[0])
    with pytest.raises(UserError, match="holds \\(1,\\) for extra, but the model expects nothing"):
        load_weights(model, {**tensors, "extra": torch.zeros(1)}, part[0])


# --- tensors and files ------------------------------------------------------------------------------------------------


def test_tensors_and_metadata_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor([True, False]), "c": torch.arange(3), "d": torch.tensor(2.5)}
    (tmp_path / "t").write_bytes(dump_tensors(tensors, {"note": "kept"}))
    loaded, metadata = load_tensors(tmp_path / "t")
    assert metadata == {"note": "kept"}
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(loaded[key], value)


def test_tensors_that_are_streamed_make_the_same_file():
    names = ("b.weight", "a", "scalar", "empty", "ü", "half", "double", "flags", "bytes", "numbers")
    kinds = (torch.float32,) * 5 + (torch.bfloat16, torch.float64, torch.bool, torch.uint8, torch.int64)
    shapes = ((2, 3), (5,), (), (0, 4), (1,), (3,), (2,), (3,), (7,), (2, 2))
    tensors = {name: torch.ones(shape, dtype=kind) for name, shape, kind in zip(names, shapes, kinds, strict=True)}
    tensors["b.weight"] = torch.randn(3, 2).T
    gathered = []
    content = b"".join(stream_tensors(tensors, lambda tensor: (gathered.append(tensor), tensor)[1]))
    assert content == dump_tensors(tensors)
    assert len(gathered) == len(tensors)


@pytest.mark.parametrize("content", [b"", b"abc", b"\x08\0\0\0\0\0\0\0{}      junk", b"\xff" * 64])
def test_damaged_tensor_file_is_refused(content, tmp_path):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match="is damaged or truncated") as caught:
        load_tensors(tmp_path / "t")
    assert "\n" not in str(caught.value)


def test_write_makes_folders_and_replaces_the_whole_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, "a longer text")
    write_atomically(path, "text ü")
    assert path.read_text(encoding="utf-8") == "text ü"
    assert path.stat().st_mode & 0o777 == 0o644
    assert files_under(tmp_path) == ["new/folder/file"]


@pytest.mark.parametrize("existed", [True, False])
def test_full_disk_leaves_the_old_file_and_nothing_else(existed, tmp_path, full_disk):
    if existed:
        (tmp_path / "file").write_text("old")
    before = contents(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new" * 1000)
    assert contents(tmp_path) == before


def test_interruption_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_full_disk_keeps_the_part_that_was_there(part, full_disk):
    folder, model, manifest = part
    before = contents(folder)
    nn.init.zeros_(model.linear.weight)
    with pytest.raises(OSError, match="No space left"):
        save_part(folder, model, manifest)
    assert contents(folder) == before


def test_json_round_trips(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None], "y": "ü"})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5, None], "y": "ü"}


# --- pipelines --------------------------------------------------------------------------------------------------------


def test_descendants_of_another_clip_are_refused_with_both_hashes():
    own, other = "1234567890abcdef" * 4, "fedcba0987654321" * 4
    family = {"clip": Manifest("clip", sha256=own)}
    family |= {part: Manifest(part, parents={"clip": own}) for part in ("prior", "decoder")}
    check_lineage(family)
    with pytest.raises(UserError) as caught:
        check_lineage({**family, "decoder": Manifest("decoder", parents={"clip": other})})
    for word in ("the decoder", own[:12], other[:12], "python train_decoder.py --out"):
        assert word in str(caught.value)


def test_a_part_that_names_no_clip_is_refused():
    with pytest.raises(UserError, match="the prior was trained on the clip unknown"):
        check_lineage({part: Manifest(part, sha256="a" * 64) for part in ("clip", "prior", "decoder")})


@pytest.mark.parametrize("part", ["prior", "decoder"])
def test_pipeline_with_a_foreign_part_is_refused(part, copied):
    edit(copied / part, parents={"clip": "f" * 64})
    own = read_manifest(copied / "clip").sha256
    with pytest.raises(UserError) as caught:
        UnCLIP.from_pretrained(copied)
    for word in (part, own[:12], "f" * 12):
        assert word in str(caught.value)


def save(folder, part: str, **named) -> str:
    return save_part(folder / part, Small(SmallConfig()), Manifest(part, **{"step": 3, "complete": True} | named))


def test_index_lists_the_complete_parts_with_their_kinds(tmp_path):
    hashes = {part: save(tmp_path, part, figures={"f": 1.5}) for part in ("clip", "decoder")}
    save(tmp_path, "prior", complete=False, sampling={"num_candidates": 9})
    write_index(tmp_path)
    rest = {"step": 3, "figures": {"f": 1.5}}
    listed = {
        "clip": {"kind": "transformer", "sha256": hashes["clip"], **rest},
        "decoder": {"kind": "diffusion", "sha256": hashes["decoder"], **rest},
    }
    index = read_index(tmp_path)
    files = {f"{part}/model.safetensors": hashes[part] for part in hashes}
    files |= {f"{part}/config.json": sha256((tmp_path / part / "config.json").read_bytes()) for part in hashes}
    assert index == {"format": FORMAT, "files": files, "parts": listed, "sampling": {}}


def test_index_carries_the_settings_of_sampling_part_by_part(tmp_path):
    save(tmp_path, "clip")
    save(tmp_path, "prior", sampling={"num_candidates": 9, "guidance": 2.0})
    save(tmp_path, "decoder", sampling={"guidance_interval": (0.0, 0.5)})
    write_index(tmp_path)
    sampling = {"prior": {"num_candidates": 9, "guidance": 2.0}, "decoder": {"guidance_interval": [0.0, 0.5]}}
    assert read_json(tmp_path / "model_index.json")["sampling"] == sampling
    own = read_sampling(tmp_path)
    assert own.prior == PriorSettings(num_candidates=9, guidance=2.0)
    assert own.decoder == DecoderSettings(guidance_interval=(0.0, 0.5))


@pytest.mark.parametrize("example", ["grinning face", "a cat's $HOME"])
def test_readme_asks_for_a_caption_of_the_pipeline_s_own_data(example, tmp_path):
    save(tmp_path, "clip", data={"name": "d", "example": example})
    write_index(tmp_path)
    usage = (tmp_path / "README.md").read_text().splitlines()[-1]
    assert shlex.split(usage) == ["python", "sample.py", "--checkpoint", str(tmp_path), example]


def test_readme_of_data_that_says_no_example_shows_where_a_caption_goes(tmp_path):
    save(tmp_path, "clip")
    write_index(tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("'a caption'\n")


def test_manifest_on_disk_names_all_that_a_part_comes_from(trained):
    clip, prior, decoder = (read_manifest(trained.folder / part) for part in ("clip", "prior", "decoder"))
    assert prior.parents == decoder.parents == {"clip": clip.sha256}
    assert clip.parents == {"tokenizer": sha256((trained.folder / "tokenizer.json").read_bytes())}
    for name, manifest in (("clip", clip), ("prior", prior), ("decoder", decoder)):
        assert (manifest.part, manifest.kind) == (name, "transformer" if name == "clip" else "diffusion")
        assert manifest.format == FORMAT
        assert manifest.complete
        assert 0 < manifest.step <= manifest.training["train"]["steps"]
        assert manifest.data["name"].startswith("fashion-mnist/train")
        assert len(manifest.data["fingerprint"]) == 64
        assert manifest.data["example"] == "an image of a t-shirt/top"
        weights = (trained.folder / name / "model.safetensors").read_bytes()
        assert sha256(weights) == manifest.sha256
        assert read_record(trained.folder / name / "config.json") == json.loads(json.dumps(asdict(manifest)))

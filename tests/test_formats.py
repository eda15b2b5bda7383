"""Pipelines of released formats keep loading, and draw the same pictures."""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import REQUIRED, ROOT, contents, edit
from pipelines.draw_pictures import arithmetic, draw_pictures

from unclip.errors import UserError
from unclip.store.checksums import sha256
from unclip.store.formats import CHANGES, FORMAT, OLDEST_FORMAT, upgrade_index, upgrade_manifest, upgrade_tensors
from unclip.store.index import read_sampling
from unclip.store.manifest import read_manifest
from unclip.store.parts import load_part, save_changed_manifest
from unclip.store.publish import publish
from unclip.store.sealed_json import read_record

PIPELINES = ROOT / "tests" / "pipelines"
FORMATS = range(OLDEST_FORMAT, FORMAT + 1)


@pytest.mark.parametrize("version", FORMATS)
def test_pipeline_of_a_released_format_draws_the_pictures_of_its_version(version):
    """Bit for bit where rounding is the same; elsewhere a pixel may be one grey level off."""
    folder = PIPELINES / f"format-{version}"
    assert {read_record(folder / part / "config.json")["format"] for part in REQUIRED} == {version}
    before = contents(folder)
    expected, drawn = np.load(folder / "pictures.npz"), draw_pictures(folder)
    assert {*expected.files} == {*drawn, "arithmetic"}
    levels, tolerance = (0, 0) if str(expected["arithmetic"]) == arithmetic() else (1, 1e-4)
    for name in ("usual", "faithful", "ddpm"):
        assert np.abs(drawn[name].astype(int) - expected[name]).max() <= levels, name
    np.testing.assert_allclose(drawn["embeddings"], expected["embeddings"], rtol=0, atol=tolerance)
    assert contents(folder) == before


def test_older_formats_draw_as_the_newest_to_the_bit():
    newest = draw_pictures(PIPELINES / f"format-{FORMAT}")
    for version in FORMATS:
        for name, pictures in draw_pictures(PIPELINES / f"format-{version}").items():
            assert np.array_equal(pictures, newest[name]), (version, name)


def test_publishing_writes_the_newest_format(tmp_path):
    publish(PIPELINES / f"format-{OLDEST_FORMAT}", tmp_path / "published", "published")
    for part in REQUIRED:
        older, newer = (read_manifest(folder / part) for folder in (PIPELINES / "format-3", tmp_path / "published"))
        assert (older.format, newer.format) == (OLDEST_FORMAT, FORMAT)
        assert (older.model, older.provenance, older.sampling) == (newer.model, newer.provenance, newer.sampling)
    assert read_sampling(tmp_path / "published") == read_sampling(PIPELINES / "format-3")
    expected = draw_pictures(PIPELINES / f"format-{OLDEST_FORMAT}")
    assert all(map(np.array_equal, draw_pictures(tmp_path / "published").values(), expected.values()))


@pytest.mark.parametrize("part", REQUIRED)
def test_manifest_of_an_older_format_is_rewritten_together_with_its_weights(part, tmp_path):
    folder = shutil.copytree(PIPELINES / f"format-{OLDEST_FORMAT}" / part, tmp_path / part)
    before, manifest = load_part(folder)
    manifest.sampling = {"steps": 3}
    save_changed_manifest(folder, manifest)
    after, rewritten = load_part(folder)
    assert (rewritten.format, rewritten.sampling) == (FORMAT, {"steps": 3})
    assert after.config == before.config
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())


def test_every_older_format_has_its_changes():
    assert list(CHANGES) == list(FORMATS)[:-1]


def test_names_of_format_3():
    prior = {
        "stage": "prior",
        "format": 3,
        "source": {"source": "x"},
        "sampling": {"draws": 2, "accept": 0.5, "steps": 9},
    }
    prior |= {"model": {"width": 8, "timesteps": 20, "rivals": 3}}
    upgraded = upgrade_manifest(prior)
    assert upgraded["part"] == "prior"
    assert upgraded["format"] == 3
    assert upgraded["provenance"] == {"source": "x"}
    assert upgraded["sampling"] == {"num_candidates": 2, "threshold": 0.5, "steps": 9}
    assert upgraded["model"] == {
        "network": {"width": 8},
        "diffusion": {"process": "variance_preserving", "prediction": "x0", "timesteps": 20},
        "num_classes": 3,
    }
    decoder = {"stage": "decoder", "format": 3, "sampling": {"tries": 2}, "model": {"width": 8, "text": True}}
    upgraded = upgrade_manifest(decoder)
    assert upgraded["sampling"] == {"num_candidates": 2}
    assert upgraded["model"]["network"] == {"unet": {"width": 8}, "text": True}
    index = upgrade_index({"format": 3, "stages": {"clip": 1}, "sampling": {"decoder": {"tries": 2}}})
    assert index == {"format": 3, "parts": {"clip": 1}, "sampling": {"decoder": {"num_candidates": 2}}}
    names = ["scaler.mean", "choice.rivals", "choice.scale", "blocks.0.norm.weight"]
    upgraded = upgrade_tensors(dict.fromkeys(names), "prior", "diffusion", 3)
    assert list(upgraded) == [
        "scaler.mean", "reranker.class_embeddings", "reranker.logit_scale", "network.blocks.0.norm.weight",
    ]  # fmt: skip
    assert list(upgrade_tensors({"unet.out.bias": 0}, "decoder", "diffusion", 3)) == ["network.unet.out.bias"]


@pytest.mark.parametrize("kind", ["diffusion", "mlp", "one_pass"])
def test_priors_of_format_4_scale_along_the_coordinates(kind):
    upgraded = upgrade_tensors({"network.regression.weight": torch.rand(4, 4).half()}, "prior", kind, 4)
    assert torch.equal(upgraded["scaler.axes"], torch.eye(4))


@pytest.mark.parametrize("changed", [None, torch.zeros(100_000), torch.zeros(()), torch.zeros(3, 5)])
def test_weights_of_an_older_format_with_other_shapes_are_refused_before_anything_is_built(changed, tmp_path):
    folder = shutil.copytree(PIPELINES / "format-4" / "prior", tmp_path / "prior")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for name in ("network.regression.weight", "scaler.mean"):
        del tensors[name]
        if changed is not None:
            tensors[name] = changed.clone()
    content = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, sha256=sha256(content))
    with pytest.raises(UserError, match=r"model.safetensors holds .* but the model expects"):
        load_part(folder)


def test_another_kind_of_an_older_format_keeps_its_config_and_weights():
    manifest = {"stage": "prior", "kind": "echo", "format": 3, "model": {"width": 8}}
    assert upgrade_manifest(manifest)["model"] == {"width": 8}
    assert upgrade_tensors({"choice.scale": 0}, "prior", "echo", 3) == {"choice.scale": 0}


def test_content_of_the_newest_format_stays():
    manifest = {"part": "prior", "kind": "diffusion", "format": FORMAT, "model": {"width": 8}}
    assert upgrade_manifest(manifest) == manifest
    assert upgrade_tensors({"choice.scale": 0}, "prior", "diffusion", FORMAT) == {"choice.scale": 0}

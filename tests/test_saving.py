"""Saving of opened pipelines: as they are, changed, put together by hand, in place, and to the Hub."""

import numpy as np
import pytest
import torch
from conftest import contents
from fake_hub import point_to, served
from small_pipeline import CAPTIONS, build

from unclip import UnCLIP, UserError
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig
from unclip.store import hub
from unclip.store.manifest import read_manifests


@pytest.fixture
def folder(tmp_path):
    return build(tmp_path / "small")


def change(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))


def digests(folder) -> dict[str, str]:
    return {part: manifest.sha256 for part, manifest in read_manifests(folder).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unchanged_pipeline_is_saved_to_the_bit_whatever_it_computes_in(dtype, folder, tmp_path):
    pipe = UnCLIP.from_pretrained(folder, dtype=dtype)
    pipe.to(torch.float32)  # the rounding stays
    pipe.save_pretrained(tmp_path / "saved")
    before, after = contents(folder), contents(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["README.md"]  # which names the folder
    again = UnCLIP.from_pretrained(tmp_path / "saved")
    assert np.array_equal(again(CAPTIONS).images, UnCLIP.from_pretrained(folder)(CAPTIONS).images)
    assert "saved" in (tmp_path / "saved" / "README.md").read_text()
    assert "partial" not in (tmp_path / "saved" / "README.md").read_text()


def test_changed_weights_get_a_new_digest_and_settings_are_stored(folder, tmp_path):
    pipe = UnCLIP.from_pretrained(folder)
    change(pipe.decoder)
    pipe.sampling = pipe.sampling.override(steps=3, prior_guidance=2.0)
    images = pipe(CAPTIONS).images
    pipe.save_pretrained(tmp_path / "saved")
    before, after = digests(folder), digests(tmp_path / "saved")
    assert [part for part in before if before[part] != after[part]] == ["decoder"]
    manifest = read_manifests(tmp_path / "saved")["decoder"]
    assert manifest.training["changed_from"] == before["decoder"]
    assert manifest.figures == {}
    assert pipe.origin == {"name": "saved", "sha256": after}
    again = UnCLIP.from_pretrained(tmp_path / "saved")
    assert again.sampling == pipe.sampling
    assert np.array_equal(again(CAPTIONS).images, images)


def test_a_pipeline_is_saved_in_place_and_as_often_as_one_likes(folder):
    pipe = UnCLIP.from_pretrained(folder)
    for _ in range(2):
        before = digests(folder)
        change(pipe.prior)
        pipe.save_pretrained(folder)
        after = digests(folder)
        assert [part for part in before if before[part] != after[part]] == ["prior"]
        assert np.array_equal(UnCLIP.from_pretrained(folder)(CAPTIONS).images, pipe(CAPTIONS).images)


def test_a_clip_that_the_others_were_not_trained_on_is_refused(folder, tmp_path):
    pipe = UnCLIP.from_pretrained(folder)
    change(pipe.clip)
    with pytest.raises(UserError, match="the clip has other weights than those that the prior was trained on"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model_index.json").exists()
    change(pipe.prior)  # as if it were trained on it
    change(pipe.decoder)
    pipe.save_pretrained(tmp_path / "saved")
    UnCLIP.from_pretrained(tmp_path / "saved")


def test_a_part_that_was_replaced_is_the_one_that_is_moved_and_saved(folder, tmp_path):
    pipe = UnCLIP.from_pretrained(folder)
    pipe.prior = DiffusionPrior(DiffusionPriorConfig(PriorConfig(8, 8, 8, width=16, layers=1, heads=2))).eval()
    assert pipe.parts["prior"] is pipe.prior
    pipe.save_pretrained(tmp_path / "saved")
    assert UnCLIP.from_pretrained(tmp_path / "saved").prior.config.network.width == 16


def test_a_pipeline_that_was_put_together_by_hand_is_saved(folder, tmp_path):
    opened = UnCLIP.from_pretrained(folder)
    pipe = UnCLIP(opened.clip, opened.tokenizer, opened.preprocess, opened.prior, opened.decoder, fit="pad")
    pipe.save_pretrained(tmp_path / "saved")
    again = UnCLIP.from_pretrained(tmp_path / "saved")
    assert (again.fit, again.preprocess.fit) == ("pad", "pad")
    assert np.array_equal(again(CAPTIONS).images, pipe(CAPTIONS).images)


def test_nothing_is_replaced_and_lost_sources_are_named(folder, tmp_path):
    pipe = UnCLIP.from_pretrained(folder)
    other = build(tmp_path / "other")
    before = contents(other)
    with pytest.raises(UserError, match=r"holds a .* already; choose another folder"):
        pipe.save_pretrained(other)
    assert contents(other) == before
    with pytest.raises(UserError, match="is a file"):
        pipe.save_pretrained(other / "README.md")
    folder.rename(tmp_path / "away")
    with pytest.raises(UserError, match="no longer holds the clip that this pipeline was opened with"):
        pipe.save_pretrained(tmp_path / "saved")


def test_a_changed_pipeline_is_pushed_to_the_hub_and_opens_from_there(folder, tmp_path, monkeypatch):
    with served() as online:
        point_to(online, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        pipe = UnCLIP.from_pretrained(folder)
        change(pipe.prior)
        assert pipe.push_to_hub("somebody/mine").endswith("somebody/mine")
        assert "README.md" in online.repositories["somebody/mine"]["main"]
        fetched = UnCLIP.from_pretrained("somebody/mine")
    torch.testing.assert_close(fetched.embed(CAPTIONS), pipe.embed(CAPTIONS), atol=0.02, rtol=0)
    with pytest.raises(UserError, match="cannot be a name on the Hugging Face Hub"):
        pipe.push_to_hub("mine")

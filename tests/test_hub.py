"""Pipelines by their name on the Hugging Face Hub: from a Hub on this machine, and from the cache without it."""

import json
import socket
import time

import numpy as np
import pytest
from conftest import ROOT, assert_one_error_line, contents, run_python
from fake_hub import point_to, served
from huggingface_hub import constants
from small_pipeline import CAPTIONS, build

from unclip import UnCLIP
from unclip.clip import load_clip
from unclip.clip.pretrained import adopt_clip
from unclip.errors import UserError
from unclip.page.shelf import Shelf, complete_pipelines
from unclip.store import hub

NAME = "somebody/small"
FILES = {"model_index.json", "tokenizer.json", "README.md"} | {
    f"{part}/{file}" for part in ("clip", "prior", "decoder") for file in ("config.json", "model.safetensors")
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An untrained pipeline. Read only."""
    return build(tmp_path_factory.mktemp("small") / "pipeline")


@pytest.fixture
def online(small, tmp_path, monkeypatch):
    """A Hub with that pipeline, among files that are none of a pipeline's; and a cache of this test's own."""
    with served() as online:
        others = {
            "prior/pytorch_model.bin": b"pickled",
            "clip/x.pt": b"pickled",
            "train/state.safetensors": b"",
            "a.py": b"",
        }
        online.repositories[NAME] = {"main": contents(small) | others}
        point_to(online, monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        monkeypatch.chdir(tmp_path)
        yield online


def test_only_the_files_of_a_pipeline_are_fetched_and_only_once(online, small):
    fetched = UnCLIP.from_pretrained(NAME)
    assert sorted(online.given) == sorted(FILES)
    np.testing.assert_array_equal(fetched(CAPTIONS).images, UnCLIP.from_pretrained(small)(CAPTIONS).images)
    UnCLIP.from_pretrained(NAME)
    assert len(online.given) == len(FILES)


def test_revision_is_a_branch_a_tag_or_a_commit(online, small, tmp_path):
    online.repositories[NAME]["v1"] = contents(small) | {"README.md": b"the first"}
    folder = hub.find_pipeline(NAME, "v1")
    assert (folder / "README.md").read_bytes() == b"the first"
    assert hub.find_pipeline(NAME, folder.name) == folder
    assert hub.find_pipeline(NAME) != folder
    UnCLIP.from_pretrained(NAME, revision="v1")
    with pytest.raises(UserError, match="it has no branch, tag or commit v9"):
        UnCLIP.from_pretrained(NAME, revision="v9")
    with pytest.raises(UserError, match=r"is a path on this machine, and only names .* have the revision v1"):
        UnCLIP.from_pretrained(small, revision="v1")


def test_a_path_wins_over_a_name(online, small, tmp_path):
    (tmp_path / "somebody").mkdir()
    (tmp_path / NAME).symlink_to(small)
    UnCLIP.from_pretrained(NAME)
    (tmp_path / NAME).unlink()
    with pytest.raises(UserError, match="so it has no clip"):  # as of a misspelt checkpoints/run
        UnCLIP.from_pretrained(NAME)
    assert online.given == []


@pytest.mark.parametrize("why", ["offline", "gone", "silent"])
def test_without_a_network_the_cache_is_asked_and_nothing_hangs(why, online, monkeypatch, recwarn):
    UnCLIP.from_pretrained(NAME)
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif why == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    else:
        online.silent.set()
    began, asked = time.perf_counter(), len(online.given)
    recwarn.clear()
    UnCLIP.from_pretrained(NAME)
    told = [str(warning.message) for warning in recwarn if "Hub does not answer" in str(warning.message)]
    assert len(told) == (why != "offline")
    with pytest.raises(
        UserError, match=r"no folder or file a/b, .* cannot be reached, or HF_HUB_OFFLINE is set, and .* no copy"
    ):
        UnCLIP.from_pretrained("a/b")
    assert time.perf_counter() - began < 20
    assert len(online.given) == asked


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_repository_that_is_no_pipeline_or_is_not_there_is_one_clear_line(online, small):
    online.repositories["a/clip"] = {"main": {"model.safetensors": b"", "tokenizer.json": b"{}"}}
    with pytest.raises(UserError, match=r"^a/clip on the Hugging Face Hub is not a pipeline .*no model_index\.json$"):
        UnCLIP.from_pretrained("a/clip")
    with pytest.raises(UserError, match="no model has that name, or it is private"):
        UnCLIP.from_pretrained("a/none")
    files = contents(small)
    online.repositories["a/cut"] = {"main": files | {"prior/model.safetensors": files["prior/model.safetensors"][:-1]}}
    with pytest.raises(UserError, match=r"prior/model\.safetensors is damaged"):
        UnCLIP.from_pretrained("a/cut")


def test_clip_of_a_pipeline_on_the_hub_is_adopted(online, small, tmp_path):
    adopt_clip(NAME, tmp_path / "run")
    assert contents(tmp_path / "run" / "clip") == contents(small / "clip")
    assert not any(name.endswith((".bin", ".pt", ".py")) for name in online.given)
    assert load_clip(NAME)[0].config == load_clip(small)[0].config


def test_page_shelves_a_pipeline_by_its_name_or_its_folder(online, small):
    assert list(complete_pipelines(small)) == ["pipeline"]
    shelf = Shelf(hub.Path(NAME))
    assert shelf.names == [NAME]
    assert shelf.open(NAME).pipe.sampling == UnCLIP.from_pretrained(small).sampling


# Publishing, and drawing from what was published.


def test_published_to_the_hub_then_drawn_from_it_online_and_offline(online, small, script, tmp_path):
    finished = script("unclip.cli.publish", small, "--to-hub", "me/mine", "--license", "mit")
    assert finished.code == 0, finished.err
    assert f"{online.url}/me/mine" in finished.out
    published = online.repositories["me/mine"]["main"]
    assert set(published) == FILES | {"samples.png"}
    assert b'UnCLIP.from_pretrained("me/mine")' in published["README.md"]
    command = ("--checkpoint", "me/mine", "a bag", "--out", tmp_path / "out")
    finished = script("sample", *command)
    assert "with me/mine" in finished.out, finished.err
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["checkpoint"] == "me/mine"
    first = (tmp_path / "out" / "000-a-bag-seed0.png").read_bytes()
    there = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    finished = run_python(ROOT / "sample.py", *command, cwd=tmp_path, **there)
    assert "with me/mine" in finished.out, finished.err
    assert (tmp_path / "out" / "000-a-bag-seed0.png").read_bytes() == first


def test_name_and_login_are_asked_for_before_any_work(online, small, script, tmp_path, monkeypatch):
    assert_one_error_line(
        script("unclip.cli.publish", small, "--to-hub", "mine"), "mine cannot be a name", "OWNER/NAME"
    )
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    command = ("unclip.cli.publish", small, tmp_path / "out", "--to-hub", "me/mine")
    assert_one_error_line(script(*command), "log in with: hf auth login")
    assert not (tmp_path / "out").exists()


def test_what_the_hub_does_not_take_is_one_clear_line(online, small, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"does not take me/mine: log in with: hf auth login$"):
        hub.upload(small, "me/mine", [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"does not take me/mine: HF_HUB_OFFLINE is set$"):
        hub.upload(small, "me/mine", [])
    assert "me/mine" not in online.repositories

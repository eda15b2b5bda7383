"""A pipeline remembers its data: what the first stage was told, those that follow need not be told again."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
from conftest import ROOT, assert_one_error_line, edit
from foreign import huggingface_clip
from own_images import picture, with_csv, with_jsonl
from small_pipeline import build

from data.inspect.proposal import Speed
from data.provenance import describe_source, inherit_source, read_provenance
from data.source_config import SourceConfig
from unclip.store.index import write_index
from unclip.store.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("own_caches")
EMOJI = ROOT / "checkpoints" / "emoji"
FEW = ("--preset", "tiny", "--train.steps", 1)


@pytest.fixture
def drawings(tmp_path):
    """A table with a column of its own for the captions, whose images have several sizes."""
    with_csv(tmp_path / "drawings", 40)
    picture(0, (30, 24)).save(tmp_path / "drawings" / "000.png")
    table = tmp_path / "drawings" / "metadata.csv"
    table.write_text(table.read_text().replace("text", "what is seen", 1))
    return tmp_path / "drawings"


@pytest.fixture
def clip(drawings, script, tmp_path):
    """A pipeline with a CLIP that was told of a size and a column."""
    options = ("--data", drawings, "--data.size", 16, "--data.caption-column", "what is seen")
    done = script("train_clip", *FEW, *options, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    return tmp_path / "run"


def test_later_stages_and_inspection_read_what_the_first_was_told(clip, drawings, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("prior", "decoder"):
        done = script(f"train_{stage}", *FEW, "--out", "run")
        assert done.code == 0, done.err
        assert f"data of run: --data {drawings} --data.size 16 --data.caption-column 'what is seen'" in done.out
        assert "was trained" not in done.out
        assert read_manifest(clip / stage).provenance == read_manifest(clip / "clip").provenance
        assert read_manifest(clip / stage).data == read_manifest(clip / "clip").data
    assert read_manifest(clip / "decoder").model["network"]["image_size"] == 16
    monkeypatch.setattr(
        "data.inspect.inspection.measure_speeds", lambda *_: dict.fromkeys(("clip", "prior", "decoder"), Speed(1, 1))
    )
    done = script("data.inspect.inspection", "--checkpoint", clip, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "40 images with captions" in done.out
    assert "training uses 16x16 colour images" in done.out


def test_what_differs_must_be_given_and_is_said_in_a_line(clip, drawings, script, tmp_path):
    done = script("train_decoder", *FEW, "--out", clip, "--data.size", 24)
    assert done.code == 0, done.err
    assert f"{clip} was trained with --data.size 16; this is with --data.size 24\n" in done.out
    assert read_manifest(clip / "decoder").model["network"]["image_size"] == 24
    shutil.rmtree(clip / "decoder")
    with_jsonl(tmp_path / "others", 40)
    done = script("train_decoder", *FEW, "--out", clip, "--data", tmp_path / "others")
    assert done.code == 0, "its captions are in the default column"
    assert f"this is with --data {tmp_path / 'others'} --data.caption-column text\n" in done.out
    assert read_manifest(clip / "decoder").model["network"]["image_size"] == 16


def test_data_that_has_changed_since_is_said(clip, drawings, script):
    for number in range(40):
        picture(number + 1).save(drawings / f"{number:03d}.png")
    done = script("train_prior", *FEW, "--out", clip)
    assert done.code == 0, done.err
    assert f"drawings/train is not, or no longer, drawings/train that the clip in {clip} was" in done.out


def test_a_source_that_is_gone_is_one_line_and_one_that_moved_keeps_its_options(clip, drawings, script, tmp_path):
    drawings.rename(tmp_path / "elsewhere")
    missing = script("train_prior", *FEW, "--out", clip)
    assert_one_error_line(missing, f"{clip} was trained on {drawings}, which is not on this machine", "--data PATH")
    missing = script("data.inspect.inspection", "--checkpoint", clip, "--out", tmp_path / "out")
    assert_one_error_line(missing, f"{clip} was trained on {drawings}, which is not on this machine")
    missing = script("stages.evaluate", "--checkpoint", clip)
    assert missing.code == 1
    (tmp_path / "new place").mkdir()
    (tmp_path / "elsewhere").rename(moved := tmp_path / "new place" / "drawings")
    done = script("train_prior", *FEW, "--out", clip, "--data", moved)
    assert done.code == 0, done.err
    assert f"{clip} was trained with --data {drawings}; this is with --data {shlex.quote(str(moved))}\n" in done.out
    assert read_manifest(clip / "prior").provenance["size"] == 16


def test_with_a_pretrained_clip_the_prior_is_the_first_stage(drawings, script, tmp_path):
    huggingface_clip(tmp_path / "foreign")
    options = ("--data", drawings, "--data.size", 16, "--data.caption-column", "what is seen")
    done = script("train_prior", *FEW, "--clip", tmp_path / "foreign", *options, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "run" / "clip").provenance == {}
    done = script("train_decoder", *FEW, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "run" / "decoder").provenance["source"] == str(drawings)


def test_a_clip_of_ours_brings_its_data_into_another_pipeline(clip, drawings, script, tmp_path):
    done = script("train_prior", *FEW, "--clip", clip, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "new" / "prior").provenance == read_manifest(clip / "clip").provenance


def test_fine_tuning_of_a_clip_reads_the_data_of_the_pipeline_that_it_starts_from(clip, drawings, script, tmp_path):
    done = script("train_clip", *FEW, "--init-from", clip, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert f"data of {clip}: --data {drawings} --data.size 16" in done.out
    assert read_manifest(tmp_path / "new" / "clip").provenance == read_manifest(clip / "clip").provenance


def test_a_published_pipeline_names_no_path(script, tmp_path):
    copied = build(tmp_path / "pipeline")
    edit(copied / "clip", provenance=describe_source(SourceConfig(str(tmp_path), root=tmp_path), 32))
    write_index(copied)
    assert script("unclip.cli.publish", copied, tmp_path / "published").code == 0
    source = read_manifest(tmp_path / "published" / "clip").provenance
    assert source["source"] == tmp_path.name
    assert str(tmp_path) not in json.dumps(source)
    assert read_provenance(tmp_path / "published", SourceConfig()).size == 32


def test_pipelines_without_a_note_are_read_as_before(tmp_path):
    plain, copied = SourceConfig(limit=50), build(tmp_path / "pipeline")
    edit(copied / "clip", data={"name": "fashion-mnist/train"})
    assert read_provenance(copied, plain) == plain
    edit(copied / "clip", data={"name": "emoji/train"})
    assert inherit_source(copied, plain, None) == SourceConfig("emoji", limit=50)
    edit(copied / "clip", data={"name": "drawings/train"})
    assert read_provenance(copied, plain) is None
    assert inherit_source(copied, plain, None) == plain
    assert read_provenance(tmp_path / "nothing", plain) is None


def test_a_size_that_a_preset_names_stays_beside_that_of_the_pipeline():
    plain = SourceConfig(size=64)
    assert inherit_source(EMOJI, SourceConfig(), None).size == 32
    for source in (None, "emoji", "shapes"):
        assert inherit_source(EMOJI, plain, source) == replace(inherit_source(EMOJI, SourceConfig(), source), size=64)
    assert inherit_source(EMOJI, plain, "fashion-mnist").size == 64, "its own, which is refused as ever"
    garments = EMOJI.with_name("fashion-mnist")
    assert inherit_source(garments, plain, None) == inherit_source(garments, SourceConfig(), None)


def test_inspection_of_a_source_or_of_a_pipeline_not_of_both_or_neither(script):
    for arguments in ((), ("emoji", "--checkpoint", "checkpoints/fashion-mnist")):
        assert_one_error_line(
            script("data.inspect.inspection", *arguments), "give a source", "or else --checkpoint DIR"
        )

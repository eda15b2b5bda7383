"""Pipelines of strangers, sealed anew with right checksums: each is refused in one line, or opens and draws."""

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_pipeline
import torch
from conftest import contents
from faults import refused
from safetensors.torch import load_file, save_file

from data.provenance import read_provenance
from data.source_config import SourceConfig
from unclip import UnCLIP
from unclip.cli.info import describe_pipeline
from unclip.errors import UserError
from unclip.store.checksums import file_sha256
from unclip.store.files import member
from unclip.store.hub import is_hub_name
from unclip.store.index import write_index
from unclip.store.manifest import read_manifests
from unclip.store.publish import in_float16, publish
from unclip.store.readme import plain_readme
from unclip.store.sealed_json import write_record
from unclip.store.training_captions import read_training_captions

MANY = os.environ.get("TORTURE") == "1"
"""Whether to run the full counts."""

PARTS = ("clip", "prior", "decoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = small_pipeline.build(tmp_path_factory.mktemp("small") / "pipeline")
    write_index(folder, files={"captions.txt": "a bag\na coat\n"})
    return folder


@pytest.fixture
def forged(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "forged")


def change_record(path: Path, change: Callable[[dict], object]) -> None:
    """Change the content of a record, and seal it anew."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    write_record(path, content)


def reseal(folder: Path) -> None:
    """Write all checksums of a pipeline anew, whatever its files hold."""
    tokenizer = file_sha256(folder / "tokenizer.json")
    for part in PARTS:
        weights = file_sha256(folder / part / "model.safetensors")
        clip = file_sha256(folder / "clip" / "model.safetensors")
        parents = {"tokenizer": tokenizer} if part == "clip" else {"clip": clip}
        change_record(folder / part / "config.json", lambda c, p=parents, w=weights: c.update(parents=p, sha256=w))
    change_record(
        folder / "model_index.json",
        lambda index: index["files"].update({name: file_sha256(folder / name) for name in index["files"]}),
    )


def use(folder: Path) -> None:
    """Read a pipeline in every way."""
    UnCLIP.from_pretrained(folder)("a bag", steps=2, prior_steps=2)
    list(describe_pipeline("name", folder))
    read_training_captions(folder)
    read_provenance(folder, SourceConfig())
    plain_readme(folder, read_manifests(folder))


# --- weights ----------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "nan": (lambda t: t * float("nan"), "not finite"),
    "one infinity": (lambda t: t.index_fill(0, torch.tensor([0]), float("inf")), "not finite"),
    "beyond float32": (lambda t: torch.full_like(t, 1e300, dtype=torch.float64), "not finite"),
    **{str(kind): (lambda t, kind=kind: t.to(kind), f"as {kind}, but the model expects float16 or")
       for kind in (torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)},
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_cannot_be_drawn_with_are_refused(part, kind, forged):
    damage, expected = WEIGHTS[kind]
    path = forged / part / "model.safetensors"
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].ndim)
    save_file(tensors | {name: damage(tensors[name]).contiguous()}, path)
    reseal(forged)
    assert expected in refused(lambda: UnCLIP.from_pretrained(forged))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_types_are_read(kind, forged):
    for part in PARTS:
        path = forged / part / "model.safetensors"
        save_file({name: tensor.to(kind) for name, tensor in load_file(path).items()}, path)
    reseal(forged)
    use(forged)


def test_pixels_that_are_not_finite_are_no_black_picture(forged):
    path = forged / "decoder" / "model.safetensors"
    save_file({name: tensor * 0 + 1e30 for name, tensor in load_file(path).items()}, path)
    reseal(forged)
    assert "not finite" in refused(lambda: UnCLIP.from_pretrained(forged)("a bag"))


def test_publishing_keeps_values_that_float16_does_not_hold():
    wide, tiny, usual = torch.tensor([70_000.0, 1]), torch.tensor([1e-7, -3e-7]), torch.randn(100)
    assert torch.equal(in_float16(wide), wide)
    assert torch.equal(in_float16(tiny), tiny)
    assert in_float16(usual).dtype == torch.float16
    assert in_float16(torch.zeros(3)).dtype == torch.float16


# --- names and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "clip/../../secret", "", ".", "..", "a\0b", "a/\0",
                                  "clip/../tokenizer.json"])  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused_and_nothing_is_told_of_them(name, forged):
    change_record(forged / "model_index.json", lambda index: index["files"].update({name: "0" * 64}))
    said = refused(lambda: UnCLIP.from_pretrained(forged))
    assert "is no name of a file in" in said
    assert "SHA-256" not in said


@pytest.mark.parametrize("name", ["captions.txt", "tokenizer.json", "model_index.json", "clip", "prior/config.json",
                                  "decoder/model.safetensors"])  # fmt: skip
def test_links_are_not_followed(name, forged, tmp_path):
    shutil.move(forged / name, tmp_path / "elsewhere")
    (forged / name).symlink_to(tmp_path / "elsewhere")
    for work in (lambda: UnCLIP.from_pretrained(forged), lambda: publish(forged, tmp_path / "out", "out")):
        assert f"{name} is a link" in refused(work)
    assert not (tmp_path / "out").exists()


def test_linked_folder_and_the_links_of_the_hub_s_cache_are_followed(folder, tmp_path):
    (tmp_path / "mine").symlink_to(folder)
    use(tmp_path / "mine")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    for i, (name, content) in enumerate(contents(folder).items()):
        blob = tmp_path / "models--a--b" / "blobs" / str(i)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    use(snapshot)
    (snapshot / "captions.txt").unlink()
    (snapshot / "captions.txt").symlink_to("/etc/hostname")
    assert "captions.txt is a link" in refused(lambda: member(snapshot, "captions.txt"))


@pytest.mark.parametrize("name", ["captions.txt", "examples/a.png", "examples/examples.json"])
def test_every_file_has_a_checksum(name, forged):
    (forged / "examples").mkdir()
    (forged / "examples" / "a.png").write_bytes(b"picture")
    (forged / "examples" / "examples.json").write_text("{}")
    write_index(forged)
    use(forged)
    (forged / name).write_bytes(b"other")
    assert f"{name} is not the file that model_index.json names" in refused(lambda: UnCLIP.from_pretrained(forged))


def test_paths_of_this_project_are_no_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("somebody/pipeline")
    for path in ("checkpoints/fashion-mnist", "outputs/x", "data/raw", "tests/classifier"):
        assert not is_hub_name(path)
    with pytest.raises(UserError, match="checkpoints/run does not exist, so it has no clip"):
        UnCLIP.from_pretrained("checkpoints/run")


# --- JSON -------------------------------------------------------------------------------------------------------------

WILD = (None, True, -1, 3, 10**30, 0.5, float("nan"), "x", "../x", "\n<script>", [], ["a"], [[1]], {}, {"a": {"b": 1}})
WITHOUT = object()
"""In place of a value: its entry is left out."""
RECORDS = ("model_index.json", *(f"{part}/config.json" for part in PARTS))


def changes_of(content: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """All values in JSON, by their paths, with each wild value or without them; and unknown entries of its tables."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from (((*path, key), value) for value in (*WILD, WITHOUT))
        yield from changes_of(content[key], (*path, key))
    if isinstance(content, dict):
        yield (*path, "unknown"), 1


def changed(content: Any, path: tuple, value: Any) -> Any:
    content = copy.copy(content)
    key, *inner = path
    if inner:
        content[key] = changed(content[key], tuple(inner), value)
    elif value is WITHOUT:
        del content[key]
    else:
        content[key] = value
    return content


def refused_when_resealed(folder, copied, name: str, content, published: bool = False) -> bool:
    """Whether a copy of a pipeline with this content in a record, and right checksums, is refused in one line."""
    shutil.copytree(folder, copied)
    write_record(copied / name, content)
    if name != "model_index.json":
        digest = {name: file_sha256(copied / name)}
        change_record(copied / "model_index.json", lambda index: index["files"].update(digest))
    is_refused = bool(refused(lambda: use(copied)))
    if published and not is_refused:
        out = copied.with_name(f"{copied.name}-out")
        is_refused = bool(refused(lambda: publish(copied, out, "out")))
        shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(copied)
    return is_refused


def test_pipeline_resealed_by_a_stranger_with_any_value_anywhere_is_used_or_refused(folder, tmp_path):
    """Each value of each record with a wild one in its place, an unknown entry, or without it, and right checksums."""
    trials = []
    for name in RECORDS:
        content = json.loads((folder / name).read_text())
        content.pop("checksum")
        assert not refused_when_resealed(folder, tmp_path / "unchanged", name, content)
        trials += [(name, content, path, value) for path, value in changes_of(content)]
    ends = {"used": 0, "refused": 0}
    for i, (name, content, path, value) in enumerate(random.Random(0).sample(trials, 600 if MANY else 40)):
        is_refused = refused_when_resealed(folder, tmp_path / str(i), name, changed(content, path, value), i % 10 == 0)
        ends["refused" if is_refused else "used"] += 1
    assert min(ends.values()) > 2


# --- tokenizers -------------------------------------------------------------------------------------------------------


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


TOKENIZERS: dict[str, tuple[Callable[[dict], object], str]] = {
    "chain of replacements": (
        lambda t: t["normalizer"]["normalizers"].extend([DOUBLING] * 60), "normalizer Replace has the pattern"),
    "another normalizer": (
        lambda t: t.update(normalizer={"type": "Prepend", "prepend": "x" * 99}), "'Prepend' is not read"),
    "nested sequences": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [
            {"type": "Precompiled"}]}]}), "'Precompiled' is not read"),
    "slow words": (
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                                          "invert": False}), "pre_tokenizer Split has the pattern"),
    "another model": (lambda t: t.update(model={"type": "Unigram", "vocab": []}), "model 'Unigram' is not read"),
    "chance": (lambda t: t["model"].update(dropout=0.5), "model BPE has the dropout 0.5, not None"),
    "id beyond the embedding": (
        lambda t: t["model"]["vocab"].update({max(t["model"]["vocab"]): 10_000}), "but the text tower has"),
    "special id beyond the embedding": (
        lambda t: t.update(post_processor={"type": "TemplateProcessing", "pair": [], "single": [
            {"SpecialToken": {"id": "s", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "e", "type_id": 0}}], "special_tokens": {
                "s": {"id": "s", "ids": [50_000], "tokens": ["s"]}, "e": {"id": "e", "ids": [1], "tokens": ["e"]}}}),
        "but the text tower has"),
    "unknown cleaning": (lambda t: t.update(cleaning=["x"]), "its cleaning is"),
    "list for a part": (lambda t: t.update(normalizer=[1]), "in place of a part"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_of_other_parts_are_refused_by_name(kind, forged):
    change, expected = TOKENIZERS[kind]
    content = json.loads((forged / "tokenizer.json").read_text())
    change(content)
    (forged / "tokenizer.json").write_text(json.dumps(content))
    reseal(forged)
    assert expected in refused(lambda: UnCLIP.from_pretrained(forged)("a" * 50))


# --- texts ------------------------------------------------------------------------------------------------------------

EVIL = "bag\n\n<script>alert(1)</script> ```\n# [x](javascript:1) ![y](http://z/y.png) | `a`\n---\n"


def test_texts_of_strangers_are_no_markup_in_readme_and_card(forged, tmp_path):
    for part in PARTS:
        change_record(
            forged / part / "config.json",
            lambda c: c.update(data={"name": EVIL, "fingerprint": EVIL, "example": EVIL}, figures={EVIL: 1.0}),
        )
    write_index(forged)
    publish(forged, tmp_path / "out", EVIL.replace("/", ""))
    for path in (forged / "README.md", tmp_path / "out" / "README.md"):
        text = path.read_text().partition("\n---\n")[2] or path.read_text()
        assert "bag" in text
        shown = [
            re.sub(r"(?<!\\)`[^`]*(?<!\\)`", "", line)  # without code
            for line in text.splitlines()
            if not line.startswith(("    ", "images = pipe", "pipe = "))
        ]
        assert not any(word in line for line in shown for word in ("<script", " [x](", "![y]", " ```", "| `a`\\|"))
        assert not any(line.startswith(("<script", "# [x]", "---")) for line in text.splitlines())


def test_captions_that_are_no_text_are_refused(forged):
    for content in (b"\xff\xfe\x00", b"x" * (2**24 + 1)):
        (forged / "captions.txt").write_bytes(content)
        reseal(forged)
        assert "captions.txt" in refused(lambda: read_training_captions(forged))
    (forged / "captions.txt").write_bytes(b"")
    reseal(forged)
    assert read_training_captions(forged)


def test_a_stranger_s_run_writes_through_no_link(tmp_path):
    import toy

    (tmp_path / "secret").write_text("mine")
    toy.train(tmp_path / "run")
    for name in ("lock", "state.safetensors", "metrics.jsonl"):
        path = tmp_path / "run" / "line" / "train" / name
        before = path.read_bytes()
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        assert f"{name} is a link" in refused(lambda: toy.train(tmp_path / "run"))
        assert (tmp_path / "secret").read_text() == "mine"
        path.unlink()
        path.write_bytes(before)

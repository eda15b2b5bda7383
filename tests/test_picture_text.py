"""Every PNG says how it was drawn: its caption, seed, settings and pipeline."""

import base64
import io
import json
import re
import shutil
from dataclasses import asdict

import pytest
from conftest import ROOT
from PIL import Image

from unclip import UnCLIP
from unclip.store.index import read_sampling
from unclip.store.manifest import read_manifest

PIPELINE = ROOT / "tests" / "pipelines" / "format-4"


def text_of(file) -> dict:
    with Image.open(file) as picture:
        return dict(picture.text)


def check_origin(text: dict) -> None:
    sums = {part: read_manifest(PIPELINE / part).sha256 for part in ("clip", "prior", "decoder")}
    assert json.loads(text["pipeline"]) == {"name": "format-4", "sha256": sums}


def test_samples_say_how_they_were_drawn_and_strangers_among_them_are_counted(script, tmp_path):
    few = ("--checkpoint", PIPELINE, "--out", tmp_path, "--steps", 2, "--prior-steps", 1)
    first = script("sample", "a bag", "", *few, "--n", 2, "--seed", 4, "--strip")
    assert first.code == 0, first.err
    assert first.out.startswith("4 images in ")
    sampling = read_sampling(PIPELINE).for_drawing(steps=2, prior_steps=1)
    record = json.loads((tmp_path / "samples.json").read_text())
    for sample in record["samples"]:
        text = text_of(tmp_path / sample["file"])
        assert (text["caption"], text["seed"]) == (sample["caption"], str(sample["seed"]))
        assert text["settings"] == json.dumps(asdict(sampling))
        check_origin(text)
    for name in ("grid.png", "strip.png"):
        text = text_of(tmp_path / name)
        assert json.loads(text["caption"]) == ["a bag", ""]
        assert json.loads(text["seed"]) == [4, 5]
        check_origin(text)
    second = script("sample", "a bag", "a coat", *few, "--seed", 4)
    assert "also holds 4 files of earlier calls, which samples.json does not describe" in second.out
    assert "\n2 images in " in second.out
    assert script("sample", "one", *few[:2], "--out", tmp_path / "new", *few[4:]).out.startswith("1 image in ")


def test_a_pipeline_that_nobody_named_is_named_first(script, tmp_path, monkeypatch):
    shutil.copytree(PIPELINE, tmp_path / "checkpoints" / "mine")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for name, *words in (("unclip.cli.sample", "a bag"), ("unclip.edit.commands", "vary", "a.png", "--n", 1)):
        finished = script(name, *words, "--steps", 2)
        assert finished.code == 0, finished.err
        assert finished.out.startswith("drawing with checkpoints/mine; name another pipeline with --checkpoint DIR\n")


@pytest.mark.parametrize(
    ("command", "arguments", "caption"),
    [
        ("vary", ("a.png", "--n", "2", "--seed", "3"), None),
        ("change", ("a.png", "--before", "a bag", "--after", "a coat", "--amounts", "0.2"), '["a bag", "a coat"]'),
        ("mix", ("--prompts", "a bag", "a coat", "--n", "1"), '["a bag", "a coat"]'),
        ("corrupt", ("a.png", "--times", "2"), None),
    ],
)
def test_edits_say_how_they_were_drawn(command, arguments, caption, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 99).save("a.png")
    steps = () if command == "corrupt" else ("--steps", 2)
    finished = script("unclip.edit.commands", command, *arguments, "--checkpoint", PIPELINE, "--out", "out", *steps)
    assert finished.code == 0, finished.err
    text = text_of(tmp_path / "out" / f"{command}.png")
    check_origin(text)
    assert text.get("caption") == caption
    assert json.loads(text["edit"])["command"] == command
    assert not steps or json.loads(text["settings"])["decoder"]["steps"] == 2
    if command == "vary":
        assert text["seed"] == "[3, 4]"


def test_pictures_of_the_page_say_how_they_were_drawn():
    from unclip.page import drawing
    from unclip.page.examples import Examples
    from unclip.page.shelf import OpenPipeline

    opened = OpenPipeline(
        str(PIPELINE), UnCLIP.from_pretrained(PIPELINE), ["a bag"], Examples(("a bag",), ("a bag", "a bag"))
    )
    *_, html = drawing.draw(opened, "a bag\na coat", 2, 5, steps=2)
    urls = re.findall(r'(?:href|img src)="data:image/png;base64,([^"]+)"', html)
    saved = [base64.b64decode(url) for url in urls]
    texts = [text_of(io.BytesIO(content)) for content in saved]
    assert [(text["caption"], text["seed"]) for text in texts[:-1]] == [
        ("a bag", "5"), ("a bag", "6"), ("a coat", "5"), ("a coat", "6")
    ]  # fmt: skip
    assert (texts[-1]["caption"], texts[-1]["seed"]) == ('["a bag", "a coat"]', "[5, 6]")
    for text in texts:
        check_origin(text)
        assert json.loads(text["settings"])["decoder"]["steps"] == 2

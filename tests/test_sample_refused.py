"""Bad input to sample.py: one line on standard error, exit status 1, no traceback, no half-written file."""

import os
import shutil
import tempfile

import pytest
import torch
from conftest import ROOT, assert_one_error_line, contents, files_under, run_python
from PIL import Image

BAG = "an image of a bag"
IMAGE = "out/000-an-image-of-a-bag-seed0.png"


# --- before torch is imported -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((BAG, "--n", "0"), ("--n must be from 1 to ", ", not 0")),
        ((BAG, "--n", "1" + 400 * "0"), ("--n must be from 1 to 1000000000, not 1000", "000...")),
        ((BAG, "--n", "-3"), ("--n must be from 1 to ", ", not -3")),
        ((BAG, "--n", "many"), ("--n", "'many'")),
        ((BAG, "--seed", "-1"), ("--seed must be from 0 to ", ", not -1")),
        ((BAG, "--steps", "0"), ("--steps must be from 1 to ", ", not 0")),
        ((BAG, "--guidance", "nan"), ("--guidance must be from 0 to 100, not nan",)),
        ((BAG, "--sampler", "euler"), ("euler", "'ddpm', 'ddim', 'dpmpp'")),
        ((BAG, "--stepz", "5"), ("--stepz", "did you mean --steps")),
        ((BAG, "--captions-flie", "x"), ("--captions-flie", "did you mean --captions-file")),
        ((), ("standard input holds no caption",)),
        (("--captions-file", "{tmp}/empty.txt"), ("empty.txt holds no caption",)),
        (("--captions-file", "{tmp}/bytes.txt"), ("bytes.txt is not text in UTF-8, UTF-16 or Windows-1252",)),
        (("--captions-file", "{tmp}/half.txt"), ("half.txt is not text", "at byte 2")),
        (("--captions-file", "{tmp}/missing.txt"), ("missing.txt", "No such file")),
        ((BAG, "--captions-file", "{tmp}/empty.txt"), ("not both",)),
    ],
)
def test_sample_refuses_bad_options(arguments, words, script, tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n\t\n")
    (tmp_path / "bytes.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "half.txt").write_bytes(b"\xff\xfea")
    before = contents(tmp_path)
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    finished = script("sample", *given, "--out", tmp_path / "out")
    assert_one_error_line(finished, *words)
    assert finished.out == ""
    assert contents(tmp_path) == before


def test_bad_option_is_one_line_on_a_terminal_without_unicode_too(tmp_path):
    finished = run_python(ROOT / "sample.py", BAG, "--stepz", "5", "--out", tmp_path / "out", PYTHONIOENCODING="ascii")
    assert_one_error_line(finished, "--stepz", "did you mean --steps")
    assert "---" not in finished.err


@pytest.mark.parametrize("stdin", [b"", b"\n \n", b"\xef\xbb\xbf\n", b"\xff\xfe"])
def test_sample_refuses_standard_input_without_captions(stdin, script, tmp_path):
    assert_one_error_line(script("sample", "--out", tmp_path / "out", stdin=stdin), "standard input")
    assert files_under(tmp_path) == []


# --- folders that it is given -----------------------------------------------------------------------------------------


def test_sample_refuses_a_missing_checkpoint_as_a_real_process(tmp_path):
    finished = run_python(ROOT / "sample.py", BAG, "--checkpoint", tmp_path / "none", "--out", tmp_path / "out")
    assert_one_error_line(finished, str(tmp_path / "none"), "does not exist", "python train_clip.py --out")
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder"])
def test_sample_refuses_an_incomplete_checkpoint(stage, copied, script, tmp_path):
    shutil.rmtree(copied / stage)
    finished = script("sample", BAG, "--checkpoint", copied, "--out", tmp_path / "out")
    assert_one_error_line(finished, f"has no trained {stage}", f"python train_{stage}.py --out {copied}")
    assert files_under(tmp_path / "out") == []


def test_sample_refuses_a_checkpoint_that_is_a_file(script, tmp_path):
    (tmp_path / "file").write_text("x")
    assert_one_error_line(script("sample", BAG, "--checkpoint", tmp_path / "file", "--out", tmp_path / "out"), "file")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"\0" + c[1:]])
def test_sample_refuses_a_damaged_checkpoint(name, damage, copied, script, tmp_path):
    path = copied / "prior" / name
    path.write_bytes(damage(path.read_bytes()))
    finished = script("sample", BAG, "--checkpoint", copied, "--out", tmp_path / "out")
    assert_one_error_line(finished, str(path))
    assert files_under(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "5000"), "steps must be between 1 and 1000, not 5000"),
        (("--prior-steps", "5000"), "steps must be between 1 and 1000, not 5000"),
    ],
)
def test_sample_refuses_more_steps_than_the_model_has(arguments, words, trained, script, tmp_path):
    finished = script("sample", BAG, *arguments, "--checkpoint", trained.folder, "--out", tmp_path / "out")
    assert_one_error_line(finished, words)
    assert files_under(tmp_path) == []


def test_sample_refuses_a_device_that_is_not_there(trained, script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ("--checkpoint", trained.folder, "--out", tmp_path / "out", "--device", "cuda")
    assert_one_error_line(script("sample", BAG, *arguments), "device cuda is not available here")


def test_sample_refuses_an_output_folder_beneath_a_file(trained, script, tmp_path):
    (tmp_path / "file").write_text("x")
    finished = script("sample", BAG, "--checkpoint", trained.folder, "--out", tmp_path / "file" / "out")
    assert_one_error_line(finished, str(tmp_path / "file"))
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize(("calls", "kept"), [(("fsync", "replace"), []), (("fsync",), [IMAGE])])
def test_sample_on_a_full_disk_leaves_whole_images_alone(calls, kept, trained, script, tmp_path, monkeypatch):
    """The disk is full before the first image, or after all of them, of which none is flushed: they are kept."""

    def refuse(*_):
        raise OSError(28, "No space left on device")

    for name in calls:
        monkeypatch.setattr(os, name, refuse)
    arguments = ("--checkpoint", trained.folder, "--out", tmp_path / "out", "--steps", 1, "--prior-steps", 1)
    assert_one_error_line(script("sample", BAG, *arguments, "--npz", "--gif", "--strip"), "No space left on device")
    assert files_under(tmp_path) == kept
    for name in kept:
        with Image.open(tmp_path / name) as image:
            assert image.size == (28, 28)
            image.load()


def test_sample_into_a_read_only_folder_leaves_no_file(trained, script, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # a test that runs as root may write anywhere
    arguments = ("--checkpoint", trained.folder, "--out", tmp_path / "out", "--steps", 1, "--prior-steps", 1)
    assert_one_error_line(script("sample", BAG, *arguments), "Permission denied", str(tmp_path / "out"))
    assert files_under(tmp_path) == []


def test_sample_refuses_seeds_that_samples_npz_cannot_hold(trained, script, tmp_path):
    arguments = ("--checkpoint", trained.folder, "--out", tmp_path / "out", "--steps", 1, "--prior-steps", 1, "--npz")
    assert_one_error_line(script("sample", BAG, *arguments, "--seed", 2**70), "seed")
    assert files_under(tmp_path) == []


def test_caption_that_is_not_unicode_is_refused(trained, script, tmp_path):
    arguments = ("--checkpoint", trained.folder, "--out", tmp_path / "out")
    assert_one_error_line(script("sample", "a bag \udcff", *arguments), "is not valid Unicode text")
    assert files_under(tmp_path) == []

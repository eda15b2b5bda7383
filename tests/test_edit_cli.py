"""unclip edit: pictures, arrays, and one line for bad input."""

import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, assert_one_error_line
from PIL import Image

from unclip.edit.lesson import draw_lesson
from unclip.pipeline import UnCLIP

PIPELINE = ROOT / "checkpoints" / "fashion-mnist"
SHOE, BOOT = PIPELINE / "examples" / "sneaker.png", PIPELINE / "examples" / "ankle-boot.png"


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (("vary", SHOE, "--n", 2, "--steps", 3), (2, 28, 28, 1)),
        (("blend", SHOE, BOOT, "--frames", 3, "--steps", 4), (3, 28, 28, 1)),
        (("change", BOOT, "--before", "a dark boot", "--after", "a light boot", "--steps", 4), (1, 3, 28, 28, 1)),
        (("mix", "--prompts", "a bag", "a boot", "--n", 2, "--steps", 3), (2, 28, 28, 1)),
        (("inpaint", SHOE, "--mask", BOOT, "--n", 1, "--steps", 3), (1, 28, 28, 1)),
        (("image-to-image", SHOE, "--caption", "a bag", "--n", 2, "--steps", 3), (2, 28, 28, 1)),
    ],
)
def test_each_command_writes_a_picture_and_its_arrays(arguments, shape, script, tmp_path):
    finished = script("unclip.edit.commands", *arguments, "--npz", "--checkpoint", PIPELINE, "--out", tmp_path)
    assert finished.code == 0, finished.err
    name = arguments[0]
    assert Image.open(tmp_path / f"{name}.png").width > 150
    assert np.load(tmp_path / f"{name}.npz")["images"].shape == shape
    if name == "blend":
        animation = Image.open(tmp_path / "blend.gif")
        assert animation.n_frames == 5  # there and back
        assert animation.info["loop"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("vary",), "no image"),
        (("vary", "nowhere.png"), "there is no image nowhere.png"),
        (("blend", SHOE), "blend takes two images, not 1"),
        (("change", SHOE), "--before and --after"),
        (("inpaint", SHOE), "--mask"),
        (("mix", "--prompts", "a bag", "--weights", 1, 2), "2 weights cannot go with 1 prompt"),
        (("corrupt", SHOE, "--steps", 5), "--steps"),
        (("vary", SHOE, "--upscale-steps", 2), "a setting of the upsampler, which this pipeline lacks"),
        (("inpaint", SHOE, "--mask", BOOT, "--prior-steps", 12), "the prior, which inpaint does not draw with"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, words, script, tmp_path):
    finished = script("unclip.edit.commands", *arguments, "--checkpoint", PIPELINE, "--out", tmp_path)
    assert_one_error_line(finished, words)


def test_the_lesson_is_three_pictures(tmp_path):
    small = ROOT / "tests" / "pipelines" / "format-4"
    paths = draw_lesson(UnCLIP.from_pretrained(small), "a bag", 2, 0, tmp_path, ddpm_steps=20)
    assert [path.name for path in paths] == ["lesson-noise.png", "lesson-steps.png", "lesson-guidance.png"]
    assert all(Image.open(path).width > 230 for path in paths)


def test_ctrl_c_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "unclip", "edit", "lesson", "--out", str(tmp_path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as program:
        time.sleep(1.5)  # it imports, or draws for much longer
        program.send_signal(signal.SIGINT)
        try:
            _, said = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 130
    assert said.startswith("stopped by SIGINT; ")
    assert said.count("\n") == 1

"""Bad input to the scripts: one line on standard error, a non-zero exit, no traceback, no half-written file."""

import gzip
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field

import pytest
import torch
from conftest import ROOT, assert_one_error_line, contents, edit, files_under, run_python
from PIL import Image

from data import fashion_mnist
from unclip import UnCLIP
from unclip.cli.main import COMMANDS
from unclip.cli.options import EarlyOptions, command_line, find_given, parse, parse_run, read_early_options
from unclip.cli.run import call
from unclip.errors import UserError
from unclip.fields import bounded, flat_values, flattened, from_data
from unclip.store.manifest import read_manifest

BAG = "an image of a bag"
IMAGE = "out/000-an-image-of-a-bag-seed0.png"
TRAINERS = ("train_clip", "train_prior", "train_decoder")


@pytest.fixture
def raw(tmp_path):
    """A folder with links to the real files, which a test may replace."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in fashion_mnist.FILES:
        (folder / f"{name}.gz").symlink_to(fashion_mnist.find_fashion_mnist() / f"{name}.gz")
    return folder


# --- sample.py, before it imports torch: as real processes ------------------------------------------------------------


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


# --- sample.py and the folders it is given ----------------------------------------------------------------------------


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


# --- the trainers -----------------------------------------------------------------------------------------------------


def test_stages_out_of_order_are_refused_as_a_real_process(tmp_path):
    finished = run_python(ROOT / "train_prior.py", "--preset", "tiny", "--out", tmp_path / "run")
    assert_one_error_line(finished, "so it has no clip", f"python train_clip.py --out {tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_decoder_before_clip_is_refused(script, tmp_path):
    finished = script("train_decoder", "--preset", "tiny", "--out", tmp_path)
    assert_one_error_line(finished, f"{tmp_path} has no trained clip")
    assert files_under(tmp_path) == []


def test_prior_on_a_clip_in_training_is_refused(copied, script):
    edit(copied / "clip", complete=False)
    before = contents(copied)
    shown = script("train_prior", "--preset", "tiny", "--out", copied)
    assert_one_error_line(shown, "still in training", f"python train_clip.py --out {copied}")
    assert contents(copied) == before


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "huge"), ("unknown preset 'huge'; choose one of tiny, quick, small, base",)),
        (("--preset=huge",), ("unknown preset 'huge'",)),
        (("--preset",), ("unknown preset ''",)),
        (("--train.stepz", "5"), ("--train.stepz", "did you mean --train.steps")),
        (("--train.lr", "fast"), ("--train.lr", "'fast'")),
        (("--train.steps", "0"), ("--train.steps must be from 1 to ", ", not 0")),
        (("--train.device", "tpu"), ("tpu", "'auto', 'cpu'")),
        (("--train.ema", "1"), ("--train.ema must be from 0 to 0.9999999, not 1.0",)),
    ],
)
def test_trainers_refuse_bad_options(name, arguments, words, script, tmp_path):
    assert_one_error_line(script(name, "--out", tmp_path, *arguments), *words)
    assert files_under(tmp_path) == []


def test_options_at_which_nothing_would_be_learned_or_read_are_refused(script, tmp_path):
    refused = script("train_clip", "--out", tmp_path, "--train.batch-size", "1")
    assert_one_error_line(refused, "--train.batch-size must be at least 2, not 1")
    for name in ("train_prior", "train_decoder"):
        assert_one_error_line(script(name, "--out", tmp_path, "--clip.revision", "main"), "give --clip OWNER/NAME too")
    assert files_under(tmp_path) == []


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "corrupt": lambda content: content[:300] + b"\0\1\2\3" + content[304:],
    "other content": lambda content: gzip.compress(b"\0" * 60_008),
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_refused(damage, raw, script, tmp_path):
    path = raw / "train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    if DAMAGES[damage]:
        path.write_bytes(DAMAGES[damage](content))
    finished = script("train_clip", "--preset", "tiny", "--data.root", raw, "--out", tmp_path / "run")
    assert_one_error_line(finished, path.name)
    assert not (tmp_path / "run").exists()


def test_data_root_without_data_is_refused(script, tmp_path):
    finished = script("train_clip", "--preset", "tiny", "--data.root", tmp_path / "none", "--out", tmp_path / "run")
    assert_one_error_line(finished, "none does not hold Fashion-MNIST")
    assert files_under(tmp_path) == []


def test_training_beneath_a_file_is_refused(script, tmp_path):
    (tmp_path / "file").write_text("x")
    finished = script("train_clip", "--preset", "tiny", "--out", tmp_path / "file" / "run")
    assert_one_error_line(finished, str(tmp_path / "file"))
    assert contents(tmp_path) == {"file": b"x"}


def test_training_on_a_full_disk_leaves_no_file(script, tmp_path, full_disk):
    assert_one_error_line(
        script("train_clip", "--preset", "tiny", "--out", tmp_path / "run"), "No space left on device"
    )
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [("--model.vision.heads", 5), ("--model.vision.patch-size", 0), ("--model.text.heads", 5)]
)
def test_model_that_cannot_be_built_is_refused(arguments, script, tmp_path):
    finished = script("train_clip", "--preset", "tiny", "--out", tmp_path / "run", *arguments)
    assert_one_error_line(finished)
    assert files_under(tmp_path) == []


def test_other_settings_in_the_folder_of_a_run_are_refused(copied, script):
    before = contents(copied)
    finished = script("train_clip", "--preset", "tiny", "--out", copied, "--train.lr", "0.123")
    assert_one_error_line(finished, "holds a run with train.lr", "not 0.123", "--out")
    assert contents(copied) == before | {"clip/train/lock": b""}  # nobody holds it any more


def test_stages_of_a_finished_run_refuse_a_new_clip(trained, copied, script, tmp_path):
    """A prior that was trained on another CLIP than the folder now holds is refused, and so is sampling with it."""
    edit(copied / "prior", parents={"clip": "f" * 64})
    own = read_manifest(copied / "clip").sha256
    finished = script("sample", BAG, "--checkpoint", copied, "--out", tmp_path / "out")
    assert_one_error_line(finished, "f" * 12, own[:12])
    assert_one_error_line(script("train_prior", "--preset", "tiny", "--out", copied), "parents.clip", own)


def test_very_few_images_are_refused(script, tmp_path):
    few = ("--data.limit", 5, "--train.steps", 1, "--train.batch-size", 4)
    finished = script("train_clip", "--preset", "tiny", "--out", tmp_path / "run", *few)
    assert_one_error_line(finished, "--data.limit must be from 10 to ", ", not 5")


# --- the command unclip -----------------------------------------------------------------------------------------------


UNCLIP = "unclip.cli.main:run_command"


def test_unclip_without_or_with_a_wrong_command_names_its_commands(script):
    finished = script(UNCLIP)
    assert finished.code == 0
    assert all(f"    unclip {command} " in finished.out for command in COMMANDS)
    without_docstrings = run_python("-OO", "-m", "unclip")
    assert without_docstrings.code == 0, without_docstrings.err
    assert all(command in without_docstrings.out for command in COMMANDS)
    assert_one_error_line(script(UNCLIP, "smaple"), "there is no command 'smaple'; did you mean sample?")
    assert_one_error_line(
        script(UNCLIP, "42"), "choose one of sample, edit, page, info, settings, doctor, publish, export"
    )
    assert_one_error_line(script(UNCLIP, "sample", BAG, "--stepz", "5"), "did you mean --steps")


def test_a_negative_caption_is_drawn_away_from_and_noted(script, tmp_path):
    pipeline = ROOT / "checkpoints" / "fashion-mnist"
    arguments = ("a bag", "--negative", "a dark bag", "--steps", 2, "--prior-steps", 2, "--checkpoint", pipeline)
    finished = script("sample", *arguments, "--guidance", 3, "--out", tmp_path)
    assert finished.code == 0, finished.err
    assert json.loads((tmp_path / "samples.json").read_text())["negative"] == "a dark bag"
    assert json.loads(Image.open(tmp_path / "000-a-bag-seed0.png").text["negative"]) == "a dark bag"
    assert_one_error_line(script("sample", *arguments, "--out", tmp_path), "negative is what guidance leads away from")


def test_unclip_samples_as_the_script_does(trained, script, tmp_path):
    few = ("--checkpoint", trained.folder, "--steps", 1, "--prior-steps", 1, "--seed", 3)
    for program, out in (([UNCLIP, "sample"], "a"), (["sample"], "b")):
        finished = script(*program, BAG, *few, "--out", tmp_path / out)
        assert finished.code == 0, finished.err
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "b").keys()
    assert contents(tmp_path / "a")["grid.png"] == contents(tmp_path / "b")["grid.png"]


def test_unclip_without_pipelines_says_so_in_one_line(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (("sample", BAG), ("info",), ("edit", "lesson")):
        finished = script(UNCLIP, *command)
        assert_one_error_line(finished, "no trained pipeline under checkpoints/", "--checkpoint DIR")
    assert files_under(tmp_path) == []


def test_info_describes_parts_data_and_sampling_of_a_pipeline(copied, script, tmp_path):
    finished = script("unclip.cli.info", copied)
    assert finished.code == 0, finished.err
    count = sum(tensor.numel() for tensor in UnCLIP.from_pretrained(copied).clip.state_dict().values())
    described = (f"clip: transformer, {count:,} parameters", "prior: diffusion, ", "decoder: diffusion, ")
    for words in (*described, "data: fashion-mnist/train", "steps 10, guidance"):
        assert words in finished.out
    edit(copied / "prior", complete=False)
    shutil.rmtree(copied / "decoder")
    unfinished = script("unclip.cli.info", copied).out
    assert "in training, step" in unfinished
    assert "decoder: not trained yet" in unfinished
    assert_one_error_line(script("unclip.cli.info", tmp_path / "none"), "none holds no part of a pipeline")


# --- the helpers themselves -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    size: int = 3
    """How large."""


def test_right_options_are_read_and_typed(monkeypatch):
    assert parse(Options, "", argv=["--size", "5"]) == Options(5)
    assert parse(Options, "", Options(7), []) == Options(7)
    monkeypatch.setattr("sys.argv", ["x", "--size", "6"])
    assert parse(Options, "") == Options(6)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--out=~/x"], ["--out=HOME/x"]),
        (["--data", "~/x", "--data.root=~"], ["--data", "HOME/x", "--data.root=HOME"]),
        (
            ["~/x", "a ~ b", "--", "~/x", "--out=x~", "--out=a", "~"],
            ["~/x", "a ~ b", "--", "~/x", "--out=x~", "--out=a", "~"],
        ),
    ],
)
def test_home_folder_is_put_in_for_the_tilde_of_an_option(given, read, monkeypatch):
    monkeypatch.setenv("HOME", "HOME")
    assert command_line(given) == read
    assert command_line(read) == read


@dataclass(frozen=True)
class Network:
    width: int = bounded(4, 1, 100)
    """Width of the network."""
    inputs: int = from_data(3)
    """Values per input."""


@dataclass(frozen=True)
class Backbone:
    network: Network = flattened(Network())
    depth: int = 2
    """Number of blocks."""


@dataclass(frozen=True)
class Model:
    backbone: Backbone = flattened(Backbone())
    timesteps: int = 10
    """Steps of the process."""


@dataclass(frozen=True)
class Training:
    model: Model = field(default_factory=Model)
    rate: float = 0.1
    """Learning rate."""


DEEP = Training(Model(Backbone(Network(inputs=7), depth=5)))


def test_options_of_flattened_configs_have_the_name_of_the_config_around_them():
    arguments = ["--model.width", "9", "--model.timesteps", "3"]
    expected = Training(Model(Backbone(Network(9, inputs=7), depth=5), timesteps=3))
    assert parse(Training, "", DEEP, arguments) == expected
    assert parse(Training, "", argv=arguments).model.backbone == Backbone(Network(9))
    assert flat_values(expected) == {
        "model.width": 9, "model.inputs": 7, "model.depth": 5, "model.timesteps": 3, "rate": 0.1
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^--model.width must be from 1 to 100, not 0$"):
        parse(Training, "", DEEP, ["--model.width", "0"])


def test_help_of_nested_configs_names_the_fields_that_are_options(capsys):
    with pytest.raises(SystemExit):
        parse(Training, "", DEEP, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("--model.width INT Width of the network. (default: 4)", "--model.depth INT Number of blocks.",
                 "--model.timesteps INT", "--rate FLOAT Learning rate. (default: 0.1)"):  # fmt: skip
        assert text in shown
    assert "inputs" not in shown
    assert "network" not in shown.replace("Width of the network", "")


def test_help_of_a_trainer_speaks_of_its_options_alone(script):
    finished = script("train_clip", "--help")
    assert finished.code == 0
    assert "--model.vision.patch-size" in finished.out
    assert "replac" not in finished.out, "the docstring of dataclasses.replace"


def test_preset_gives_the_defaults_that_options_change():
    presets = {"quick": Preset("quick", 1), "base": Preset("base", 2)}
    for argv, expected in (([], Preset("quick", 1)), (["--preset", "base"], Preset("base", 2)),
                           (["--preset=base", "--size", "9"], Preset("base", 9))):  # fmt: skip
        assert parse_run(presets, "", argv) == expected


@dataclass(frozen=True)
class Preset:
    preset: str
    """Which."""
    size: int
    """How large."""


def failing(error: BaseException):
    def main(argv) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("bad thing; do that"), "error: bad thing; do that"),
        (OSError(28, "No space left on device", "/x/y"), "error: /x/y: No space left on device"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied"),
        (MemoryError(), "error: out of memory; choose a smaller batch size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "error: out of memory; choose a smaller batch size"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_a_user_can_mend_becomes_one_line(error, message, capsys):
    assert call(failing(error)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert printed.count("\n") == 1


def test_memory_of_the_cpu_that_runs_out_becomes_one_line(capsys):
    assert call(lambda _: torch.empty(10**15)) == 1
    assert capsys.readouterr().err == "error: out of memory; choose a smaller batch size, or a smaller model\n"


def test_a_defect_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        call(failing(ZeroDivisionError()))


def test_the_status_that_a_program_returns_is_its_exit_status():
    assert call(lambda argv: len(argv), ["a", "b", "c"]) == 3
    assert call(lambda argv: None, []) == 0
    source = "from unclip.cli.run import run\nrun(lambda argv: 7)"
    assert run_python("-c", source).code == 7


@pytest.mark.parametrize(
    "argv", [["--init-from", "a_b"], ["--init_from", "a_b"], ["--init-from=a_b"], ["--init_from=a_b"]]
)
def test_early_options_are_found_as_the_parser_of_all_spells_them(argv):
    argv = ["caption", "--init-fro", "x", *argv, "--stylish", "--sampling.style", "faithful", "--n", "-3"]
    assert read_early_options(argv) == EarlyOptions(init_from="a_b", style="faithful")
    assert read_early_options([]) == EarlyOptions()


def test_the_last_of_several_values_of_an_early_option_counts_and_a_missing_one_is_empty():
    assert read_early_options(["--out", "a", "--out=b", "--preset"]) == EarlyOptions(out="b", preset="")
    assert read_early_options(["--preset", "--out", "a"]) == EarlyOptions(out="a", preset="")


def test_given_options_are_found_whatever_their_values():
    assert find_given(["--steps", "3", "--guidance=1"], ["steps", "guidance", "eta"]) == ["steps", "guidance"]

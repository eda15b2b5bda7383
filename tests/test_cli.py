"""The command unclip, its options, and how every program runs."""

import json
import shutil
from dataclasses import dataclass, field

import pytest
import torch
from conftest import COMMITTED, assert_one_error_line, contents, edit, files_under, run_python
from PIL import Image

from unclip import UnCLIP
from unclip.cli.main import COMMANDS
from unclip.cli.options import EarlyOptions, command_line, find_given, parse, parse_run, read_early_options
from unclip.cli.run import call
from unclip.errors import UserError
from unclip.fields import bounded, flat_values, flattened, from_data

BAG = "an image of a bag"
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
    arguments = ("a bag", "--negative", "a dark bag", "--steps", 2, "--prior-steps", 2, "--checkpoint", COMMITTED)
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


# --- options ----------------------------------------------------------------------------------------------------------


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


# --- errors and exit status -------------------------------------------------------------------------------------------


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

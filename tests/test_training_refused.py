"""Bad input to the trainers: one line on standard error, exit status 1, no traceback, no half-written file."""

import gzip

import pytest
from conftest import ROOT, assert_one_error_line, contents, edit, files_under, run_python

from data import fashion_mnist
from unclip.store.manifest import read_manifest

TRAINERS = ("train_clip", "train_prior", "train_decoder")


@pytest.fixture
def raw(tmp_path):
    """A folder with links to the real files, which a test may replace."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in fashion_mnist.FILES:
        (folder / f"{name}.gz").symlink_to(fashion_mnist.find_fashion_mnist() / f"{name}.gz")
    return folder


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
    finished = script("sample", "a bag", "--checkpoint", copied, "--out", tmp_path / "out")
    assert_one_error_line(finished, "f" * 12, own[:12])
    assert_one_error_line(script("train_prior", "--preset", "tiny", "--out", copied), "parents.clip", own)


def test_very_few_images_are_refused(script, tmp_path):
    few = ("--data.limit", 5, "--train.steps", 1, "--train.batch-size", 4)
    finished = script("train_clip", "--preset", "tiny", "--out", tmp_path / "run", *few)
    assert_one_error_line(finished, "--data.limit must be from 10 to ", ", not 5")

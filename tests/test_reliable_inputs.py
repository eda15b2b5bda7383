"""Options, arguments and pipelines of strangers: each runs, or is refused in one line that says what to do."""

import json
import os
import random
import shutil
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_pipeline
import torch
from faults import flip, forked, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.train import train_part
from unclip import UnCLIP
from unclip.cli.options import parse_run
from unclip.cli.sample import main as sample
from unclip.errors import UserError
from unclip.fields import flat_values
from unclip.settings import SAMPLING_OPTIONS
from unclip.store.index import write_index
from unclip.store.sealed_json import read_json, write_record

MANY = os.environ.get("TORTURE") == "1"
"""Whether to run the full counts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small_pipeline.build(tmp_path_factory.mktemp("small") / "pipeline")


@pytest.fixture(scope="module")
def pipe(folder) -> UnCLIP:
    return UnCLIP.from_pretrained(folder)


def refusal(work, *expected: type[Exception]) -> str | None:
    """The one line with which some work is refused; None if it is done, or ends as expected."""
    message = None
    with warnings.catch_warnings(action="ignore"):
        try:
            work()
        except expected:
            pass
        except UserError as error:
            message = str(error)
    assert message is None or "\n" not in message, message
    return message


# --- options ----------------------------------------------------------------------------------------------------------

ODD = ("-1", "0", "1", "2", "3", "7", "64", "1e6", "1000000", "1000000000000", "0.5", "1.5", "-0.5", "nan", "inf",
       "-inf", "x", "True", "1e-300", "99999999999999999999")  # fmt: skip


class Reached(Exception):
    """All options are accepted: the data would be read now."""


def options_of(kind: str) -> list[str]:
    """Every option of a trainer that takes a number."""
    module = __import__(f"configs.{kind}", fromlist=["PRESETS"])
    flat = flat_values(module.PRESETS["tiny"])
    numbers = [k for k, v in flat.items() if isinstance(v, (int, float, tuple)) and not isinstance(v, bool)]
    return ["--" + name.replace("_", "-") for name in numbers if not name.startswith(("model.preprocess", "sampling"))]


@pytest.fixture
def before_data(monkeypatch):
    """The trainers, up to where they read data."""
    from stages import data_config, inputs

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr(data_config, "load_splits", reached)
    monkeypatch.setattr(inputs, "read_manifest", reached)


@pytest.mark.parametrize("part", ["clip", "prior", "decoder"])
def test_any_combination_of_options_is_accepted_or_named_before_data_is_read(part, before_data, capsys):
    presets = __import__(f"configs.{part}", fromlist=["PRESETS"]).PRESETS
    names = options_of(part)
    assert len(names) > 15

    @settings(max_examples=340 if MANY else 40, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.dictionaries(st.sampled_from(names), st.sampled_from(ODD), min_size=1, max_size=3))
    def combine(chosen):
        arguments = [part for name, value in chosen.items() for part in (name, value)]
        argv = ["--preset", "tiny", *arguments]
        message = refusal(lambda: train_part(part, parse_run(presets, "test", argv)), Reached)
        assert message is None or any(name in message for name in (*chosen, "--model")), (chosen, message)

    combine()


@pytest.mark.parametrize(
    ("program", "option", "value"),
    [("clip", "--model.vision.width", "0"), ("clip", "--model.embed-dim", "-4"),
     ("clip", "--model.text.mlp-ratio", "nan"), ("clip", "--vocab-size", "-5"), ("decoder", "--model.head-dim", "0"),
     ("decoder", "--model.head-dim", "7"),
     ("decoder", "--drop-image", "2"), ("prior", "--drop", "1"), ("clip", "--augment.shift", "1000000"),
     ("clip", "--model.embed-dim", "0"), ("prior", "--model.layers", "-1"),
     ("decoder", "--model.attention-levels", "5"),
     ("clip", "--train.lr", "inf"), ("decoder", "--model.timesteps", "1000000000000"), ("prior", "--model.heads", "5"),
     ("clip", "--resume-with", "-1"), ("clip", "--data.limit", "3")],
)  # fmt: skip
def test_value_out_of_range_is_named_with_its_option_and_range(program, option, value, capsys):
    presets = __import__(f"configs.{program}", fromlist=["PRESETS"]).PRESETS
    with pytest.raises(UserError, match=rf"^{option} must "):
        parse_run(presets, "test", ["--preset", "tiny", option, value])


def test_model_that_cannot_fit_is_refused_from_arithmetic(before_data):
    from configs.clip import PRESETS

    big = ["--model.vision.width", "16384", "--model.vision.heads", "8", "--model.vision.layers", "200"]
    with pytest.raises(UserError, match=r"a model of 6\.4e\+11 parameters takes at least .* GB to train, but cpu has"):
        train_part("clip", parse_run(PRESETS, "test", ["--preset", "tiny", *big]))


# --- sample.py --------------------------------------------------------------------------------------------------------


def sampled(folder: Path, out: Path, *options: str) -> int:
    return sample([*small_pipeline.CAPTIONS[:2], "--checkpoint", str(folder), "--out", str(out), *options])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--n", "0"),
        ("--prior-num-candidates", "100000"),
        ("--batch-size", "0"),
        ("--steps", "0"),
        ("--guidance", "nan"),
        ("--seed", "-1"),
        ("--eta", "2"),
        ("--n", "100000000000"),
    ],
)
def test_sampling_option_out_of_range_is_named(option, value, folder, tmp_path):
    with pytest.raises(UserError, match=rf"^{option} must "):
        sampled(folder, tmp_path, option, value)


def test_images_go_to_disk_as_they_are_drawn_and_are_the_same_in_any_batches(folder, tmp_path, capsys):
    sampled(folder, tmp_path / "a", "--n", "40", "--npz", "--strip", "--gif", "--batch-size", "7")
    sampled(folder, tmp_path / "b", "--n", "40", "--npz", "--strip", "--gif", "--batch-size", "64")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(names) == 80 + 5
    images = {}
    for out in ("a", "b"):
        with np.load(tmp_path / out / "samples.npz") as archive:
            images[out] = archive["images"].astype(int)
            assert archive["seeds"].tolist() == [*range(40)] * 2
            assert archive["captions"].tolist() == [c for c in small_pipeline.CAPTIONS[:2] for _ in range(40)]
    assert np.abs(images["a"] - images["b"]).max() <= 1
    samples = read_json(tmp_path / "a" / "samples.json")["samples"]
    assert [(s["caption"], s["seed"]) for s in samples] == [
        (c, i) for c in small_pipeline.CAPTIONS[:2] for i in range(40)
    ]
    for i in (0, 41):
        assert np.array_equal(np.array(Image.open(tmp_path / "a" / samples[i]["file"])), images["a"][i, ..., 0])


def test_interrupted_drawing_keeps_and_lists_what_is_drawn(folder, tmp_path):
    out = tmp_path / "out"
    child = forked(
        lambda: sampled(folder, out, "--n", "100000", "--npz", "--strip", "--batch-size", "4"), tmp_path / "log"
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("000-*.png"))) < 10:
        assert not (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, "nothing is drawn"
        time.sleep(0.01)
    child.kill(signal.SIGINT)
    status, said = child.wait()
    assert status == 130
    samples = read_json(out / "samples.json")["samples"]
    assert one_line(said, f"stopped by SIGINT after {len(samples)} of 200000 images, which are in {out}"), said
    assert all((out / sample["file"]).is_file() for sample in samples)
    assert len(list(out.glob("000-*.png"))) == len(samples) == len(np.load(out / "samples.npz")["images"])
    assert (out / "grid.png").is_file()
    assert (out / "strip.png").is_file()


# --- the Python API ---------------------------------------------------------------------------------------------------


def test_numbers_and_sequences_of_any_kind_are_taken(pipe):
    usual = pipe(["a bag", "a dark coat"], n=2, seed=5, steps=3)
    for captions, n, seed, steps in (
        (("a bag", "a dark coat"), np.int64(2), np.uint8(5), np.int32(3)),
        (iter(["a bag", "a dark coat"]), torch.tensor(2), torch.tensor(5), torch.tensor(3)),
        (np.array(["a bag", "a dark coat"]), 2, iter([5, 6, 5, 6]), 3),
        (["a bag", "a dark coat"], 2, np.array([5, 6, 5, 6]), 3),
    ):
        found = pipe(captions, n=n, seed=seed, steps=steps)
        assert np.array_equal(found.images, usual.images)
        assert found.captions == usual.captions
        assert found.seeds == [5, 6, 5, 6]
    assert np.array_equal(pipe("a bag", guidance_interval=[0, np.float32(1)]).images,
                          pipe("a bag", guidance_interval=(0.0, 1.0)).images)  # fmt: skip


def test_embeddings_of_any_kind_are_taken_and_normalised(pipe):
    embeddings = pipe.embed(["a bag", "a dark coat"])
    usual = pipe.decode(embeddings)
    for other in (embeddings.numpy(), embeddings.double(), embeddings.tolist(), 100 * embeddings, list(embeddings),
                  embeddings.numpy()[::-1][::-1], np.asfortranarray(embeddings.numpy()).astype(">f4"),
                  embeddings.clone().requires_grad_()):  # fmt: skip
        assert np.abs(pipe.decode(other).astype(int) - usual.astype(int)).max() <= 1


def test_images_of_any_kind_are_taken(pipe):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    usual = pipe.encode_image(pixels)
    for other in (pixels[::-1][::-1], list(pixels), tuple(map(torch.from_numpy, pixels)), torch.from_numpy(pixels),
                  iter(pixels), np.asfortranarray(pixels), [Image.fromarray(one) for one in pixels]):  # fmt: skip
        assert torch.allclose(pipe.encode_image(other), usual, atol=2e-3)


NAN, INF = float("nan"), float("inf")
ODD_VALUES = (None, NAN, INF, -1, 0, 2.5, 10**30, "x", "", b"x", [], {}, {"a": 1}, object(), [None], [[]], [NAN],
              {1, 2}, True, 1 + 2j, np.zeros(0), np.full((2, 8), NAN), np.zeros((2, 8)), np.array([["x"]]),
              torch.zeros(2, 8),
              torch.full((1, 8), INF), np.array([object()], dtype=object), "cuda:99", "nowhere", lambda: 1, ["a", 1],
              np.float32(0.5), range(3), Image.new("F", (8, 8)))  # fmt: skip


def test_odd_arguments_run_or_are_refused_in_one_line(pipe):
    """Each argument of each method, with each odd value."""
    calls = [
        *((pipe, ("a bag",), name) for name in ("n", "seed", "captions", "odd", *SAMPLING_OPTIONS)),
        *((pipe.embed, ("a bag",), name) for name in ("n", "seed", "prior_num_candidates", "captions")),
        *((pipe.decode, (), name) for name in ("embeddings", "captions", "noise", "seed")),
        (pipe.encode_text, (), "captions"), (pipe.encode_image, (), "images"), (pipe.to, (), "device"),
        (UnCLIP.from_pretrained, (), "path"),
    ]  # fmt: skip
    trials = [(*call, value) for call in calls for value in ODD_VALUES]
    refused = 0
    for method, arguments, name, value in trials if MANY else random.Random(1).sample(trials, 300):
        arguments = () if name == "captions" else arguments
        rest = {"embeddings": np.eye(8)[:1]} if method == pipe.decode and name != "embeddings" else {}
        refused += refusal(partial(method, *arguments, **rest, **{name: value})) is not None
    assert refused > 200


# --- pipelines of strangers -------------------------------------------------------------------------------------------

WILD = (-1, 0, 1, 3, 7, 10**6, 10**12, 10**30, -0.5, 0.5, NAN, INF, True, None, "x", [], {}, [1, 2, 3], [[1]], "gelu")


def mutate(value, chance: random.Random):
    """The same JSON with one value, somewhere in it, changed."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.95:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(list(keys))
        changed = value.copy()
        changed[key] = mutate(value[key], chance)
        return changed
    return chance.choice(WILD)


def test_mutated_pipeline_opens_and_draws_or_is_refused_in_one_line(folder, tmp_path):
    """A stranger can write any config and any checksum; and bytes can change on the way."""
    chance, ends = random.Random(2), {"drawn": 0, "refused": 0}
    for trial in range(500 if MANY else 60):
        copy = shutil.copytree(folder, tmp_path / str(trial))
        if trial % 3:
            path = copy / chance.choice(["clip", "prior", "decoder"]) / "config.json"
            content = json.loads(path.read_text())
            content.pop("checksum")
            part = "model" if chance.random() < 0.8 else chance.choice(list(content))
            write_record(path, content | {part: mutate(content[part], chance)})
            (copy / "model_index.json").unlink()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("unclip.store.index.is_complete", lambda path: path.is_dir())
                try:
                    write_index(copy)
                except Exception:  # the stranger's own program
                    (copy / "model_index.json").unlink(missing_ok=True)
        else:
            flip(
                chance.choice([path for path in sorted(copy.rglob("*")) if path.suffix in (".json", ".safetensors")]),
                chance,
            )
        said = refusal(lambda copy=copy: UnCLIP.from_pretrained(copy)("a bag", steps=2, prior_steps=2))
        ends["refused" if said else "drawn"] += 1
        shutil.rmtree(copy)
    assert ends["refused"] > ends["drawn"]


def test_any_flipped_bit_of_a_pipeline_is_refused(folder, tmp_path):
    chance, usual = random.Random(6), UnCLIP.from_pretrained(folder)("a bag").images
    for trial in range(200 if MANY else 30):
        copy = shutil.copytree(folder, tmp_path / str(trial))
        paths = [path for path in sorted(copy.rglob("*")) if path.suffix in (".json", ".safetensors")]
        where = flip(chance.choice(paths), chance)
        found = []
        said = refusal(lambda copy=copy, found=found: found.append(UnCLIP.from_pretrained(copy)("a bag").images))
        assert np.array_equal(found[0], usual) if said is None else str(copy) in said, (where, said)
        shutil.rmtree(copy)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "[]", "null", '{"format": 3}', ""])
def test_odd_json_is_refused_in_one_line(text, folder, tmp_path):
    for name in ("prior/config.json", "model_index.json"):
        copy = shutil.copytree(folder, tmp_path / name.replace("/", "-"))
        (copy / name).write_text(text)
        with pytest.raises(UserError, match=r"^[^\n]*(prior/config|model_index)\.json[^\n]*$"):
            UnCLIP.from_pretrained(copy)

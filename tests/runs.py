"""Break a training off, and compare two runs to the bit."""

import json

import torch
from conftest import files_under

from unclip.store.sealed_json import read_json
from unclip.store.tensors import load_tensors

CPU = torch.device("cpu")


def metrics(folder, name="line") -> list[dict]:
    lines = (folder / name / "train" / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def assert_same_run(one, other, name="line"):
    """The saved weights, the state that a run would go on from, and the figures on the way are equal to the bit."""
    assert (one / name / "model.safetensors").read_bytes() == (other / name / "model.safetensors").read_bytes()
    states, progress = [], []
    for folder in (one, other):
        tensors, metadata = load_tensors(folder / name / "train" / "state.safetensors")
        states.append(tensors)
        progress.append(json.loads(metadata["progress"]) | {"seconds": None})
    assert progress[0] == progress[1]
    assert states[0].keys() == states[1].keys()
    assert {key.split(".")[0] for key in states[0]} - {"Muon"} == {"model", "average", "AdamW"}
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert metrics(one, name) == metrics(other, name)
    assert read_json(one / name / "config.json") == read_json(other / name / "config.json")
    assert files_under(one) == files_under(other)


def break_off(stage, method: str, call: int):
    """Make a stage raise KeyboardInterrupt at the given call of a method."""
    original, calls = getattr(stage, method), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    setattr(stage, method, interrupted)
    return stage

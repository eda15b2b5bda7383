"""Break a training off, and compare two runs to the bit."""

import json
from pathlib import Path

import torch
from conftest import files_under

from stages.state import open_state
from unclip.store.sealed_json import read_json
from unclip.store.tensors import load_tensors

CPU = torch.device("cpu")


def metrics(folder, name="line") -> list[dict]:
    lines = (folder / name / "train" / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def read_state(folder, name="line") -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of the last state, whole, and its progress."""
    state, progress = open_state(folder / name / "train" / "state.safetensors")
    if isinstance(state, Path):
        from torch.distributed.checkpoint import load
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        reader = HuggingFaceStorageReader(str(state))
        described = reader.read_metadata().state_dict_metadata
        state = {key: torch.empty(saved.size, dtype=saved.properties.dtype) for key, saved in described.items()}
        load(state, storage_reader=reader, no_dist=True)
        for key in [key for key in state if key.endswith(".logit_scale")]:  # files of whole states hold a scalar
            state[key] = state[key].reshape(())
    return state, vars(progress)


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

"""States that no single process holds: each rank writes its part, and any number of ranks reads them.

torch.distributed.checkpoint writes and reads the parts, as safetensors, for which no file is unpickled. A state is a
folder. Its record is written last: it names the parts with their checksums. Then the folder gets its name.

Imports torch.distributed.checkpoint, which takes a second: for trainings with `--train.shard`, and their states, alone.
"""

import shutil
import warnings
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from stages import runtime
from stages.state import Progress, forget_older, optimizer_tensors, parse_progress, progress_values, sharded_path
from unclip.errors import UserError
from unclip.store.checksums import file_xxh3
from unclip.store.files import flush_folder, member, partial_name
from unclip.store.sealed_json import read_record, write_record

RECORD = "state.json"


class ShardedStates:
    """Writes the states of a run, one at a time, while the run goes on. All ranks must call its methods.

    Args:
        folder: where the states are.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.ranks = dist.new_group(backend="gloo", timeout=timedelta(hours=2))  # the thread's that writes
        self.writing: Future | None = None
        self.writer: PartWriter | None = None
        if runtime.is_main():
            forget_older(folder)  # a kill may have left a third

    def tensors(
        self, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> dict[str, Tensor]:
        """All tensors that the run goes on from, of which this rank holds a share."""
        return live_tensors(model, average, optimizers)

    def save(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Copy the tensors of this rank, and begin to write them. Raises what `finish` raises for the state before."""
        self.finish()
        folder = sharded_path(self.folder, progress.step)
        temporary = runtime.gather_values(partial_name(folder))[0]
        self.writer = PartWriter(folder, temporary, progress_values(progress))
        self.writing = dcp.async_save(tensors, storage_writer=self.writer, process_group=self.ranks)

    def check(self) -> None:
        """Raise the error of the last state if it could not be written. Ranks may learn of that at different steps."""
        if self.writing is not None and self.writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the last state is written whole. Raises the error, such as that of a full disk, if it is not."""
        if self.writing is None:
            return
        try:
            self.writing.result()
        except CheckpointException as error:
            if runtime.is_main():
                shutil.rmtree(self.writer.temporary, ignore_errors=True)
            raise _cause(error, self.writer.folder) from error
        self.writing = None


class PartWriter(HuggingFaceStorageWriter):
    """Writes the parts of a state into a temporary folder, which gets its name when all of them are written."""

    def __init__(self, folder: Path, temporary: Path, progress: dict[str, Any]):
        super().__init__(str(temporary), save_distributed=True)
        self.folder = folder
        self.temporary = temporary
        self.progress = progress

    def write_data(self, plan: Any, planner: Any) -> torch.futures.Future:
        """Write this rank's part. The result is the names of its files with their checksums."""
        written = {item.storage_data.relative_path for item in super().write_data(plan, planner).wait()}
        result: torch.futures.Future = torch.futures.Future()
        result.set_result([(name, file_xxh3(self.temporary / name)) for name in sorted(written)])
        return result

    def finish(self, metadata: Any, results: list[list[tuple[str, str]]]) -> None:
        """Name the parts of all ranks in the record, and give the folder its name. One rank calls it."""
        parts = dict(part for of_rank in results for part in of_rank)
        if absent := [name for name in parts if not (self.temporary / name).is_file()]:
            raise UserError(f"{self.folder.parent} is not the same folder on all machines: {absent[0]} is not in it")
        write_record(self.temporary / RECORD, {"progress": self.progress, "parts": parts})
        self.temporary.rename(self.folder)
        flush_folder(self.folder.parent)
        forget_older(self.folder.parent)


def _cause(error: CheckpointException, folder: Path) -> BaseException:
    """The first rank's error, which names the state."""
    cause, _ = next(iter(error.failures.values()))
    if isinstance(cause, OSError):
        cause.filename = str(folder)
    return cause


def open_parts(folder: Path) -> Progress:
    """The progress of a state. All ranks must call it: each reads some of the parts, to compare their checksums.

    Raises UserError on all ranks if a part is missing or damaged.
    """
    [fault, *_] = [fault for fault in runtime.gather_values(_find_fault(folder)) if fault] or [""]
    if fault:
        raise UserError(fault)
    return parse_progress(read_record(folder / RECORD)["progress"], folder)


def _find_fault(folder: Path) -> str:
    """The damage to the record, or to this rank's share of the parts; "" if there is none."""
    try:
        record = read_record(member(folder, RECORD))
        parts = sorted(record["parts"].items())
        if {path.name for path in folder.glob("*.safetensors")} != {name for name, _ in parts}:
            raise UserError(f"{folder} does not hold the files that its {RECORD} names")
        for name, checksum in parts[runtime.rank() :: runtime.world_size()]:
            if file_xxh3(member(folder, name)) != checksum:
                raise UserError(f"{folder / name} is damaged (its checksum does not match)")
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    except UserError as error:
        return str(error)
    return ""


def load_parts(folder: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Fill the models and the optimisers, shared out or whole, from a state of any number of ranks.

    All ranks must call it. Raises UserError if it is the state of another model.
    """
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    for optimizer in optimizers:
        _make_moments(optimizer, saved)
    tensors = live_tensors(model, average, optimizers)
    sizes = {name: tuple(described.size) for name, described in saved.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(sizes.keys() | expected.keys()):
        if sizes.get(name) != expected.get(name):
            shapes = [side.get(name, "nothing") for side in (sizes, expected)]
            raise UserError(f"{folder} holds {shapes[0]} for {name}, but the training expects {shapes[1]}")
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may read the parts of several
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=runtime.world_size() == 1)
    except CheckpointException as error:
        raise _cause(error, folder) from error


def live_tensors(model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The tensors of a run themselves, shared out as they are: whatever is read into them is the run's."""
    tensors = optimizer_tensors(optimizers)
    for module, part in ((model, "model"), (average, "average")):
        named = (*module.named_parameters(), *module.named_buffers())
        tensors |= {f"{part}.{name}": tensor.detach() for name, tensor in named}
    return tensors


def _make_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimiser the moments that a state holds of it, zeros for now, and shared out as their weights are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, described in saved.items():
        part, _, name = key.partition(".")
        if part == type(optimizer).__name__:
            index, _, name = name.partition(".")
            weight = weights[int(index)].detach()
            alike = described.size and described.size == weight.shape
            moment = torch.zeros_like(weight) if alike else torch.zeros(described.size, device=weight.device)
            state.setdefault(int(index), {})[name] = moment.to(described.properties.dtype)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

"""The options of an evaluation of edits, and its report: edits.md, edits.json and edits.npz."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from stages.data_config import DataConfig
from stages.evaluation.edit_measures import EditContext, measure_edits
from stages.evaluation.evaluate import JUDGE, ROOT, nan_to_none
from stages.evaluation.judge_training import trained_judge
from stages.evaluation.report import table
from stages.loop import TrainConfig
from unclip import UnCLIP
from unclip.devices import pick_device
from unclip.errors import UserError
from unclip.fields import bounded
from unclip.settings import Device, check_seeds
from unclip.store.array_files import write_npz
from unclip.store.files import write_atomically
from unclip.store.sealed_json import write_json


@dataclass(frozen=True)
class EditsOptions:
    checkpoint: Path = ROOT / "checkpoints" / "fashion-mnist"
    """Folder of a trained pipeline, or its name OWNER/NAME on the Hugging Face Hub."""
    images: int = bounded(200, 10, 10**5)
    """Real images to try each kind of edit on."""
    seed: int = bounded(0, 0, 2**62)
    """Chooses the images, and seeds all edits."""
    out: Path | None = None
    """Folder for the report (default: outputs/edits/NAME)."""
    device: Device = "auto"
    """Where to draw: auto takes a GPU if there is one."""
    split: Literal["test", "validation"] = "test"
    """The images to edit. Choose settings on validation, so that the test images stay unseen."""
    data: DataConfig = field(default_factory=DataConfig)
    judge: TrainConfig = JUDGE
    """How the classifier is trained."""

    def __post_init__(self):
        check_seeds(self.seed, self.images)


def evaluate_edits(options: EditsOptions) -> dict[str, Any]:
    """Measure a pipeline's edits and write the report. Return the contents of edits.json.

    Raises UserError if the data has no classes, or if the pipeline cannot be opened.
    """
    device = pick_device(options.device)
    pipe = UnCLIP.from_pretrained(options.checkpoint, device)
    splits = options.data.load(options.split, "validation", "train", held_out=True)
    test, validation, train = splits
    if not all(data.classes and len(data.labels.unique()) == len(data.classes) for data in splits):
        raise UserError(f"{test.name} has no images of classes that a classifier could tell apart; choose other --data")
    classifier = trained_judge(train, validation, options.judge, device)
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(options.seed))[: options.images]
    measurements, arrays = measure_edits(EditContext(pipe, classifier, test, rows, options.seed))
    name = options.checkpoint.resolve().name
    out = options.out or Path("outputs") / "edits" / name
    report = {
        "checkpoint": name,
        "data": {"name": test.name, "fingerprint": test.fingerprint},
        "images": len(rows),
        "seed": options.seed,
        "figures": {row.name: row.figure | {"wanted": row.wanted} for row in measurements},
    }
    text = table(["figure", "wanted", "value"], [[row.name, row.wanted, row.text] for row in measurements])
    write_npz(out / "edits.npz", arrays)
    write_json(out / "edits.json", nan_to_none(report))
    write_atomically(out / "edits.md", f"# Edits by {name}, {len(rows)} images of {test.name}\n\n{text}")
    print(f"\n{text}\nalso in {out / 'edits.md'}")
    return report

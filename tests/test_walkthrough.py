"""The notebook runs from top to bottom, as Jupyter would run it, and shows a picture of each stage."""

import json

import nbformat
from conftest import ROOT
from nbclient import NotebookClient

WALKTHROUGH = ROOT / "stages" / "walkthrough.ipynb"


def test_walkthrough_is_committed_without_outputs():
    cells = nbformat.read(WALKTHROUGH, 4).cells
    assert not any(cell.outputs or cell.execution_count for cell in cells if cell.cell_type == "code")


def test_walkthrough_installs_what_it_needs_on_colab_alone():
    first = next(cell for cell in nbformat.read(WALKTHROUGH, 4).cells if cell.cell_type == "code")
    condition, *lines = first.source.splitlines()[2:]
    assert condition == 'if "google.colab" in sys.modules:'
    assert lines == ["    %cd unclip", '    %pip install --quiet ".[train]"']


def test_walkthrough_runs_and_each_stage_learns(tmp_path):
    notebook = nbformat.read(WALKTHROUGH, 4)
    setup = next(
        cell for cell in notebook.cells if "checkpoints/walkthrough" in cell.source and cell.cell_type == "code"
    )
    setup.source = setup.source.replace("checkpoints/walkthrough", str(tmp_path))
    setup.source += "\ntrained.sampling = trained.sampling.override(steps=3, prior_steps=3, num_candidates=1)"
    for cell in notebook.cells:
        cell.source = cell.source.replace("steps=25", "steps=4")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": WALKTHROUGH.parent}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) == 9
    told = "".join(output.text for output in shown if output.output_type == "stream" and output.name == "stdout")
    figures = {line.rsplit(maxsplit=1)[0]: float(line.split()[-1]) for line in told.splitlines() if line[-1:].isdigit()}
    assert figures["zero-shot accuracy on validation images:"] > 0.12
    assert figures["cosine_sample"] > figures["cosine_text"] + 0.2
    log = map(json.loads, (tmp_path / "tiny" / "decoder" / "train" / "metrics.jsonl").read_text().splitlines())
    chance = [line["chance_loss"] for line in log if "chance_loss" in line]
    assert figures["validation loss:"] < 0.8 * chance[-1]

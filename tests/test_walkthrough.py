"""The notebook runs as Jupyter would run it, knows right answers, and is committed with its outputs."""

import sys
from types import ModuleType

import nbformat
import pytest
from conftest import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from stages.questions import QUESTIONS

WALKTHROUGH = ROOT / "stages" / "walkthrough.ipynb"
RIGHT = {
    1: "math.log(2)",
    2: "is_shoe[closer].float().mean()",
    3: "0.8",
    4: "sigma * x + alpha * v",
    5: "160",
    6: "1.1",
    7: "'b'",
    8: "1 - (torch.pi / 3) / math.acos(cosine)",
}
"""Answers that a reader may write in place of the three dots."""
FEWER_STEPS = {
    'checkpoints/fashion-mnist")': 'checkpoints/fashion-mnist")\npipe.sampling = pipe.sampling.override(steps=3)',
    "steps=20": "steps=4",
    '"steps": 20': '"steps": 4',
    "range(36)": "range(3)",
}
"""Changes that make the run short; each is in the notebook."""


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def shown(cell) -> tuple[int, bool]:
    """The number of a cell's pictures, and whether it prints anything."""
    return sum("image/png" in output.get("data", {}) for output in cell.outputs), bool(printed(cell))


def test_walkthrough_is_committed_with_the_outputs_of_one_run():
    cells = code_cells(nbformat.read(WALKTHROUGH, 4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert WALKTHROUGH.stat().st_size < 1_000_000


def test_walkthrough_runs_and_knows_right_answers():
    committed = nbformat.read(WALKTHROUGH, 4)
    notebook = nbformat.read(WALKTHROUGH, 4)
    answered = []
    for number, answer in RIGHT.items():
        index, cell = next(
            (i, cell) for i, cell in enumerate(notebook.cells) if cell.source.startswith(f"# Question {number}.")
        )
        assert cell.source.count("...") == 1
        answered.append(nbformat.v4.new_code_cell(cell.source.replace("...", answer)))
        notebook.cells.insert(index + 1, answered[-1])
    for old, new in FEWER_STEPS.items():
        assert any(old in cell.source for cell in code_cells(notebook))
        for cell in code_cells(notebook):
            cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": WALKTHROUGH.parent}}).execute()
    assert [printed(cell) for cell in answered] == ["right\n"] * len(QUESTIONS)
    ids = {cell.id for cell in answered}
    run = [cell for cell in code_cells(notebook) if cell.id not in ids]
    assert list(map(shown, run)) == list(map(shown, code_cells(committed)))
    assert sum(printed(cell).startswith("not answered yet") for cell in run) == len(QUESTIONS)


@pytest.mark.parametrize("is_colab", [True, False])
def test_first_cell_installs_in_colab_alone(tmp_path, monkeypatch, is_colab):
    monkeypatch.chdir(tmp_path)
    if is_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    commands = []

    class Shell:
        def system(self, command: str) -> None:
            commands.append(command.split()[:2])
            (tmp_path / "unclip").mkdir()

        def run_line_magic(self, name: str, line: str) -> None:
            commands.append([name, line])

    source = TransformerManager().transform_cell(code_cells(nbformat.read(WALKTHROUGH, 4))[0].source)
    for _ in range(2):  # a second run has nothing left to do
        exec(source, {"get_ipython": Shell})
    expected = [["git", "clone"], ["cd", "unclip"], ["pip", 'install --quiet ".[train]"']]
    assert commands == (expected if is_colab else [])

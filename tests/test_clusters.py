"""The launch files: their syntax is right, and our programs take the options in them."""

import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT
from test_documentation import parse_all, shell_commands

from stages.clusters.rehearsal import LAYERS, WIDTHS, RehearsalOptions, kill_rank, list_programs
from stages.run_options import Shapes
from unclip.cli.options import parse_run
from unclip.registry import default_kind, find_kind, resolve
from unclip.store.parts import WithoutInitialWeights

CLUSTERS = ROOT / "stages" / "clusters"
LAUNCHER = """
import subprocess, sys
ranks = [subprocess.Popen(["sleep", "20"]) for _ in range(2)]
print("started", flush=True)
status = ranks[1].wait()
ranks[0].kill()
sys.exit(-status)
"""
LAUNCHER_OPTIONS = re.compile(r"--(nnodes|nproc-per-node|rdzv-\w+|max-restarts)")


def arguments_of_torchrun(words: list[str]) -> tuple[str, list[str]]:
    """The program that torchrun starts, a file or a module, and its arguments."""
    at = next(i for i, word in enumerate(words) if word == "-m" or word.endswith(".py"))
    launcher = [word for word in words[:at] if word.startswith("-")]
    assert all(map(LAUNCHER_OPTIONS.fullmatch, launcher)), launcher
    at += words[at] == "-m"
    return words[at], words[at + 1 :]


def slurm_commands() -> list[tuple[str, list[str]]]:
    script = (CLUSTERS / "slurm.sh").read_text()
    lines = [line for line in script.splitlines() if not line.startswith("#")]
    commands = [words for words in shell_commands("\n".join(lines)) if words[:2] == ("srun", "torchrun")]
    return [arguments_of_torchrun([*words[2:]]) for words in commands]


def job() -> dict:
    return yaml.safe_load((CLUSTERS / "pytorchjob.yaml").read_text())


def test_script_for_slurm_is_accepted_by_bash_and_asks_slurm_for_what_it_knows():
    path = CLUSTERS / "slurm.sh"
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    lines = path.read_text().splitlines()
    asked = [line for line in lines if line.startswith("#SBATCH")]
    known = "job-name|nodes|ntasks-per-node|gpus-per-node|cpus-per-task|time|signal|requeue"
    assert asked
    assert all(re.fullmatch(rf"#SBATCH --({known})(=\S+)?", line) for line in asked)
    assert max(map(lines.index, asked)) < lines.index("set -e"), "sbatch reads no option after the first command"


def test_job_for_kubernetes_has_the_fields_of_its_kind():
    kind = job()
    assert (kind["apiVersion"], kind["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = kind["spec"]["pytorchReplicaSpecs"]["Worker"]
    elastic = kind["spec"]["elasticPolicy"]
    assert elastic["minReplicas"] <= worker["replicas"] <= elastic["maxReplicas"]
    pod = worker["template"]["spec"]
    [container] = pod["containers"]
    assert container["name"] == "pytorch"  # by which the operator finds it
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert int(kind["spec"]["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_job_for_kubernetes_is_read_by_kubectl(tmp_path):
    shutil.copy(CLUSTERS / "pytorchjob.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [pytorchjob.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == job()


def test_our_programs_take_the_options_of_the_launch_files():
    [container] = job()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert container["command"][0] == "torchrun"
    commands = [*slurm_commands(), arguments_of_torchrun(container["command"][1:])]
    programs = [program for program, _ in commands]
    of_slurm = ["train_clip.py", "stages.embed", "train_prior.py", "stages.embed", "train_decoder.py"]
    assert programs == [*of_slurm, "train_clip.py"]
    rehearsed = [arguments_of_torchrun([*program.words]) for program in list_programs(RehearsalOptions())]
    assert [program for program, _ in rehearsed] == [*of_slurm, "stages.train"]
    commands += rehearsed
    assert parse_all([list(command) for command in commands], None) == [""] * len(commands)


def test_rehearsal_has_less_than_a_thousandth_of_the_paper_s_weights_in_as_many_layers():
    shapes = Shapes(image_size=256, channels=3, vocab_size=1024, embed_dim=16, text_width=16, context=77)
    for part, widths in WIDTHS.items():
        kind = find_kind(part, default_kind(part))
        paper = resolve(kind.presets)["paper"]
        words = [str(word) for pair in ({"--preset": "paper"} | widths | LAYERS[part]).items() for word in pair]
        modules = []
        weights = []
        for run in (paper, parse_run({"paper": paper}, "", words)):
            with torch.device("meta"), WithoutInitialWeights():
                model = resolve(kind.stage).build_model(run, shapes)
            modules.append(len(list(model.modules())))
            weights.append(sum(weight.numel() for weight in model.parameters()))
        assert modules[0] == modules[1]
        assert weights[0] > 1000 * weights[1], part


def test_rehearsal_kills_a_rank_of_a_training_that_has_a_state(tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE)
    launcher.stdout.readline()
    (tmp_path / "state.safetensors").touch()  # no state of this kind
    assert not kill_rank(launcher, tmp_path)
    (tmp_path / "state-000000002").mkdir()
    assert kill_rank(launcher, tmp_path)
    assert launcher.wait(10) == signal.SIGKILL, "as its second child has ended"
    assert not kill_rank(launcher, tmp_path), "as it has ended"

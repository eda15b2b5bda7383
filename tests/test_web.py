"""The page without a server: its modules against Python's, and its files; test_lite.py opens it in a browser."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT

from unclip.clip.tokenizer import Tokenizer
from unclip.diffusion.process import VariancePreserving
from unclip.errors import UserError
from unclip.lite.levels import Process
from unclip.lite.noise import RowNoise
from unclip.lite.reranking import choose_candidates
from unclip.lite.samplers import SAMPLERS
from unclip.settings import FastDecoderSettings
from unclip.web.export import RUNTIME, SITE, export_web

NODE = shutil.which("node")
SOURCE = ROOT / "tests" / "pipelines" / "format-4"
CAPTIONS = ["an image of a coat", "  A  DARK\tnarrow dress ", "", "naïve Ångström 日本語 🙂 don't we'll 123abc --",
            "<|endoftext|> x", "e\u0301", "word " * 40]  # fmt: skip


def noise_fixtures() -> list[dict]:
    fixtures = []
    for seed in (0, 1, 2**32 + 5, 2**53 - 1, 2**62 + 3):
        noise = RowNoise([seed], 1, 3)
        calls = [noise((count,))[0].tolist() for count in (40, 33, 16)]
        fixtures.append({"seed": str(seed), "stream": [1, 3], "calls": calls})
    return fixtures


def process_fixtures() -> list[dict]:
    fixtures = []
    for table in (VariancePreserving().alphas_cumprod.numpy(), VariancePreserving(30, "linear").alphas_cumprod.numpy()):
        process = Process(table)
        levels = {
            "karras": process.karras_levels(7),
            "even": process.even_levels(7),
            "consistency": process.consistency_levels(FastDecoderSettings(7)),
        }
        flat = {name: [number for level in values for number in level] for name, values in levels.items()}
        fixtures.append({"table": table.tolist(), "steps": 7, "levels": flat})
    return fixtures


def sampler_fixtures(table: list[float]) -> dict:
    start = np.random.default_rng(0).standard_normal((2, 20)).astype(np.float32)
    levels = Process(np.array(table)).karras_levels(7)

    def shrink(x, level):
        return x * (0.5 * level.alpha / (0.5 * level.alpha**2 + level.sigma**2))

    results = {}
    for name, sampler in SAMPLERS.items():
        options = {"eta": 0.7} if name == "ddim" else {}
        results[name] = sampler(shrink, start, levels, RowNoise([1, 2], 2), **options).ravel().tolist()
    return {"start": start.ravel().tolist(), "dim": 20, "results": results}


def tokenizer_fixtures() -> dict:
    path = SOURCE / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    context = 16
    ids = []
    for caption in CAPTIONS:
        [row] = tokenizer.encode([caption], context).tolist()
        ids.append(row + [tokenizer.pad_id] * (context - len(row)))
    special = {"start": tokenizer.start_id, "end": tokenizer.end_id, "pad": tokenizer.pad_id}
    json_content = json.loads(path.read_text(encoding="utf-8"))
    return {"json": json_content, "context": context, "special": special, "captions": CAPTIONS, "ids": ids}


def reranking_fixtures() -> list[dict]:
    generator = np.random.default_rng(0)

    def unit(*shape):
        vectors = generator.standard_normal(shape).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    fixtures = []
    for classes in (0, 5):
        text = unit(12, 8)
        own = text[:classes] if classes else np.zeros((0, 8), np.float32)
        candidates = unit(12, 3, 8)
        empty = [0] * 11 + [1]
        for threshold in (0.0, 0.4, 1.0):
            chosen = choose_candidates(candidates, text, own, 9.0, threshold)
            fixture = {
                "candidates": candidates.swapaxes(0, 1).ravel().tolist(),
                "dims": [36, 8],
                "text": text.ravel().tolist(),
                "empty": empty,
                "classes": own.tolist(),
                "scale": 9.0,
                "threshold": threshold,
                "chosen": np.where(empty, 0, chosen).tolist(),
            }
            fixtures.append(fixture)
    return fixtures


@pytest.mark.skipif(NODE is None, reason="the page's modules are tested by node, which is not installed")
def test_modules_compute_what_python_does(tmp_path):
    processes = process_fixtures()
    fixtures = {
        "noise": noise_fixtures(),
        "processes": processes,
        "samplers": sampler_fixtures(processes[0]["table"]),
        "tokenizer": tokenizer_fixtures(),
        "reranking": reranking_fixtures(),
    }
    (tmp_path / "fixtures.json").write_text(json.dumps(fixtures))
    site = shutil.copytree(SITE, tmp_path / "site")
    (site / "package.json").write_text('{"type": "module"}')
    environment = os.environ | {"FIXTURES": str(tmp_path / "fixtures.json"), "SITE": str(site)}
    command = [NODE, "--test", str(ROOT / "tests" / "web" / "modules.test.mjs")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stdout
    assert "# tests 9" in finished.stdout or "tests 9" in finished.stdout


def test_the_page_asks_no_other_host():
    for path in SITE.iterdir():
        assert "http" not in path.read_text(encoding="utf-8").replace("http-equiv", ""), path.name
    policy = (SITE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_a_runtime_without_its_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"holds no ort.wasm.min.mjs; name the folder dist of the package {RUNTIME}"):
        export_web(SOURCE, tmp_path / "site", runtime=tmp_path)
    assert not (tmp_path / "site").exists()

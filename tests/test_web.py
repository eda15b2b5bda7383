"""The page without a server: its modules against Python's, and its files; test_web_browser.py opens it in a browser."""

import gzip
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_error_line
from foreign import clip_vocabulary
from PIL import Image

from unclip.clip.foreign.tokenizer_files import read_tokenizer
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import Tokenizer
from unclip.diffusion.process import VariancePreserving
from unclip.errors import UserError
from unclip.lite.levels import Process
from unclip.lite.noise import RowNoise
from unclip.lite.redrawing import Drawn, redraw_failed
from unclip.lite.reranking import choose_candidates, image_probabilities, keeps_first
from unclip.lite.samplers import SAMPLERS
from unclip.pixels import read_pixels
from unclip.settings import MAX_SEED, FastDecoderSettings, PriorSettings
from unclip.web.export import PAGE, RUNTIME, export_web

NODE = shutil.which("node")
SOURCE = ROOT / "tests" / "pipelines" / "format-4"
FASHION = ROOT / "checkpoints" / "fashion-mnist"
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


def clip_tokenizer(folder: Path) -> Path:
    """A tokenizer that splits words as OpenAI's does."""
    clip_vocabulary(folder)
    tokenizer = read_tokenizer(folder, TextConfig(vocab_size=10_000, pooling="argmax"), "")
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return folder


def tokenizer_fixtures(folder: Path) -> dict:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    context = 16
    ids = []
    for caption in CAPTIONS if folder == SOURCE else CAPTIONS[:4]:
        with warnings.catch_warnings(action="ignore"):  # captions are cut
            [row] = tokenizer.encode([caption], context).tolist()
        ids.append(row + [tokenizer.pad_id] * (context - len(row)))
    special = {"start": tokenizer.start_id, "end": tokenizer.end_id, "pad": tokenizer.pad_id}
    json_content = json.loads(path.read_text(encoding="utf-8"))
    return {"json": json_content, "context": context, "special": special, "captions": CAPTIONS[: len(ids)], "ids": ids}


def resizing_fixtures() -> list[dict]:
    generator = np.random.default_rng(0)
    fixtures = []
    for width, height, fit in ((30, 20, "crop"), (7, 31, "pad"), (9, 5, "stretch"), (12, 12, "crop")):
        for channels in (1, 3):
            pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
            resized = read_pixels(Image.fromarray(pixels.squeeze()), 12, channels, fit)
            values = {"pixels": pixels.ravel().tolist(), "resized": resized.ravel().tolist()}
            fixtures.append({"width": width, "height": height, "fit": fit, "channels": channels, **values})
    return fixtures


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
                "keepsFirst": keeps_first(text, np.array(empty) > 0, own, threshold).tolist(),
                "probabilities": image_probabilities(candidates[:, 0], text, np.array(empty) > 0, own, 9.0).tolist(),
            }
            fixtures.append(fixture)
    return fixtures


def redrawing_fixtures() -> list[dict]:
    """Noise in place of images, of which those pass that are close to what is in place of their captions."""
    seeds = [0, 5, 2**45 + 1, MAX_SEED - 2, MAX_SEED]
    captions = np.linspace(-1, 1, len(seeds), dtype=np.float32)[:, None]

    def draw(text, seeds):
        noise = RowNoise(seeds, 1)((16,))
        return Drawn(noise, noise[:, :4].copy(), np.array(seeds))

    fixtures = []
    for redraws, threshold in ((0, 0.5), (3, 0.5), (3, 1.0)):
        settings = PriorSettings(redraws=redraws, image_threshold=threshold)
        kept = redraw_failed(captions, seeds, settings, draw, lambda images, text: np.exp(-abs(images - text)[:, 0]))
        fixture = {
            "seeds": [str(seed) for seed in seeds],
            "captions": captions.ravel().tolist(),
            "redraws": redraws,
            "threshold": threshold,
            "images": kept.images.ravel().tolist(),
            "embeddings": kept.embeddings.ravel().tolist(),
            "kept": [str(seed) for seed in kept.seeds],
        }
        fixtures.append(fixture)
    assert len({tuple(fixture["kept"]) for fixture in fixtures}) == 3
    return fixtures


@pytest.mark.skipif(NODE is None, reason="the page's modules are tested by node, which is not installed")
def test_modules_compute_what_python_does(tmp_path):
    processes = process_fixtures()
    fixtures = {
        "noise": noise_fixtures(),
        "processes": processes,
        "samplers": sampler_fixtures(processes[0]["table"]),
        "tokenizers": [tokenizer_fixtures(SOURCE), tokenizer_fixtures(clip_tokenizer(tmp_path))],
        "reranking": reranking_fixtures(),
        "redrawing": redrawing_fixtures(),
        "resizing": resizing_fixtures(),
    }
    (tmp_path / "fixtures.json").write_text(json.dumps(fixtures))
    site = shutil.copytree(PAGE, tmp_path / "site")
    (site / "package.json").write_text('{"type": "module"}')
    environment = os.environ | {"FIXTURES": str(tmp_path / "fixtures.json"), "SITE": str(site)}
    command = [NODE, "--test", str(ROOT / "tests" / "web" / "modules.test.mjs")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stdout
    assert "tests 12" in finished.stdout


def test_the_page_asks_no_other_host():
    for path in PAGE.iterdir():
        assert "http" not in path.read_text(encoding="utf-8").replace("http-equiv", ""), path.name
    policy = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_pipelines_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two of the pipelines have folders of one name"):
        export_web([SOURCE, SOURCE], tmp_path / "site", runtime=tmp_path)


def test_only_a_page_takes_several_pipelines(script):
    finished = script("unclip.cli.main", "export", SOURCE, SOURCE, "--to", "onnx")
    assert_one_error_line(finished, "--to onnx takes one pipeline, not 2")


def test_the_site_of_the_committed_pipeline_is_small():
    """The weights of what draws, compressed, beside 4.5 MB for the runtime, the graphs and the page."""
    parts = [path.parent.name for path in sorted(FASHION.glob("*/model.safetensors"))]
    drawn = [part for part in parts if part != "decoder" or "fast_decoder" not in parts]
    weights = sum(len(gzip.compress((FASHION / part / "model.safetensors").read_bytes(), 1)) for part in drawn)
    assert weights + 4.5e6 < 20e6


def test_a_runtime_without_its_files_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=rf"holds no ort.wasm.bundle.min.mjs; name the folder dist of the package {RUNTIME}"
    ):
        export_web([SOURCE], tmp_path / "site", runtime=tmp_path)
    assert not (tmp_path / "site").exists()

"""Whatever device, default type, default device or autocast a process has set, a pipeline draws the same pictures."""

import contextlib
import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_python
from networks import randomise
from small_pipeline import build
from torch import nn

from unclip import UnCLIP, UserError, edit
from unclip.clip import Preprocess
from unclip.clip.preprocess_config import PreprocessConfig
from unclip.edit.text_change import text_difference
from unclip.prior import DiffusionPrior
from unclip.store.index import write_index
from unclip.store.parts import load_part, save_part

CAPTIONS = ["bag", "coat", "shoe"]
GUIDED = {"guidance": 2.0, "prior_guidance": 2.0, "guidance_interval": (0.0, 1.0), "num_candidates": 2}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)


def build_random(folder: Path) -> Path:
    """A small pipeline whose weights are random, so that what goes in matters."""
    build(folder)
    for part in ("prior", "decoder"):
        model, manifest = load_part(folder / part)
        if part == "prior":
            model = DiffusionPrior(replace(model.config, num_classes=3))
            model.network.regression.weight.normal_()
            model.reranker.fit(UnCLIP.from_pretrained(folder).encode_text(CAPTIONS), 20.0)
        save_part(folder / part, randomise(model), manifest)
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_random(tmp_path_factory.mktemp("devices"))


def open_pipeline(folder, device="cpu") -> UnCLIP:
    """The pipeline, with a preprocessing that resizes."""
    pipe = UnCLIP.from_pretrained(folder)
    pipe.preprocess = Preprocess(8, 1, PreprocessConfig("shortest", resize_to=10, mean=(0.5,), std=(0.3,)))
    return pipe.to(device)


def draw_everything(pipe: UnCLIP) -> dict[str, np.ndarray]:
    """The results of all that a pipeline and the edits offer."""
    out = pipe([CAPTIONS[0], ""], n=2, seed=3, **GUIDED)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    mixed = edit.mix(pipe, {CAPTIONS[0]: 1, CAPTIONS[1]: 2}, n=2)
    corrupted = edit.corrupt(pipe, IMAGES, times=2)
    painted = edit.inpaint(pipe, IMAGES, mask, CAPTIONS[0], steps=2)
    results = {
        "call": out.images, "noise": out.noise, "embeddings": out.embeddings,
        "ddpm": pipe(CAPTIONS, sampler="ddpm", spacing="even", prior_num_candidates=2).images,
        "ddim": pipe("bag", sampler="ddim", eta=0.5, steps=3).images,
        "decode": pipe.decode(np.eye(8, dtype=np.float32)[:2], noise=out.noise[:2]),
        "encode_text": pipe.encode_text(CAPTIONS), "encode_image": pipe.encode_image(IMAGES),
        "embed": pipe.embed(CAPTIONS[1], n=3),
        "vary": edit.vary(pipe, IMAGES, n=2).images,
        "blend": edit.blend(pipe, IMAGES[0], IMAGES[1], frames=3, steps=2),
        "change": text_difference(pipe, *CAPTIONS[:2]),
        "mix": mixed.images, "mixed": mixed.embeddings, "inpaint": painted.images,
        "probe": edit.probe(pipe, IMAGES, components=(0, 3), reference=pipe.embed("", n=9)),
        "corrupt": corrupted.noised, "predict": corrupted.predicted,
    }  # fmt: skip
    return {name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value for name, value in results.items()}


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, np.ndarray]:
    return draw_everything(open_pipeline(folder))


def assert_equal(results: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert [name for name in expected if not np.array_equal(results[name], expected[name])] == []


def test_library_runs_on_a_device_without_float64_and_some_operators():
    """In a process of its own, because PyTorch keeps a device that was once made known to it."""
    checks = ROOT / "tests" / "fake_device_checks.py"
    finished = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", checks)
    assert finished.code == 0, finished.out


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "settings",
    [
        (default_dtype(torch.float64), default_device("meta")),  # whatever is made there has no values to draw with
        (default_dtype(torch.bfloat16), torch.inference_mode()),
        (torch.autocast("cpu", torch.bfloat16), contextlib.nullcontext()),
    ],
    ids=["float64", "bfloat16", "autocast"],
)
def test_settings_of_the_process_change_no_picture(settings, folder, expected):
    one, other = settings
    with one, other:
        assert_equal(draw_everything(open_pipeline(folder)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_everything_and_changes_little(dtype, folder, expected):
    """Random weights make more of each rounding than trained ones do."""
    pipe = open_pipeline(folder).to(dtype)
    assert pipe.dtype == dtype
    assert {parameter.dtype for parameter in pipe.clip.parameters()} == {dtype, torch.float32}
    results = draw_everything(pipe)
    for name in ("noise", "embeddings", "encode_text", "encode_image", "embed"):
        assert results[name].dtype == np.float32
    assert np.abs(results["encode_image"] - expected["encode_image"]).max() < 0.02
    assert np.array_equal(results["noise"], expected["noise"])


@pytest.mark.parametrize("dtype", [torch.float64, "bfloat16"])
def test_other_precisions_are_refused(dtype, folder):
    with pytest.raises(UserError, match=r"dtype must be one of torch\.float32, torch\.bfloat16, torch\.float16, not"):
        open_pipeline(folder).to("cpu", dtype)


def test_results_can_be_trained_on(folder):
    pipe = open_pipeline(folder)
    out = pipe(CAPTIONS)
    text = pipe.encode_captions(CAPTIONS)
    latent = edit.invert(pipe, IMAGES, steps=2)
    for features in (
        pipe.encode_image(IMAGES), pipe.encode_text(CAPTIONS), pipe.embed(CAPTIONS), text.tokens, out.embeddings,
        out.noise.flatten(1), latent.embeddings, latent.noise.flatten(1), edit.vary(pipe, IMAGES, 1).embeddings,
        edit.mix(pipe, {"bag": 1}).embeddings,
    ):  # fmt: skip
        probe = nn.Linear(features.shape[-1], 2)
        probe(features).square().mean().backward()
        assert probe.weight.grad.abs().max() > 0
        assert not features.requires_grad
        features += 1  # in place, too


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copied_pipeline_draws_the_same(copied, folder):
    pipe = open_pipeline(folder)
    again = copied(pipe)
    captions = ["bag", "<|endoftext|>", ""]
    assert np.array_equal(again(captions).images, pipe(captions).images)
    assert again.parts["prior"] is again.prior

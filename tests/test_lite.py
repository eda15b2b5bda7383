"""Exported pipelines, and the runtime that draws from them without PyTorch, against the pipeline itself."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import run_python
from exported_pipeline import CAPTIONS, KINDS, altered, converted, open_source, with_classes, with_parts
from networks import randomise
from onnx import TensorProto

from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, VisionConfig
from unclip.decoder.text_decoder import TextDecoder
from unclip.errors import UserError
from unclip.lite import Lite
from unclip.lite.description import FORMAT
from unclip.onnx.export import describe, write_networks
from unclip.onnx.networks import EXPORTS, ExportedNetwork, ImageTower, check_kinds, networks_of
from unclip.prior.mlp_model import MLPConfig
from unclip.prior.mlp_prior import MLPPrior, MLPPriorConfig
from unclip.prior.one_pass_prior import OnePassPrior, OnePassPriorConfig
from unclip.registry import PARTS, default_kind


@pytest.fixture(scope="module")
def pipe(exported):
    return open_source(exported)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_networks_compute_what_the_pipeline_s_do(exported, pipe, batch):
    kinds = {name: default_kind(name) for name in pipe.parts}
    assert_networks_equal(exported, networks_of(pipe, kinds), batch)


def assert_networks_equal(folder, networks, batch):
    for name, network in networks.items():
        rows = torch.arange(batch) % 3
        inputs = [tensor[rows] for tensor in network.inputs.values()]
        with torch.no_grad():
            expected = network.module(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        names = [entry.name for entry in session.get_inputs()]
        found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"style": "faithful", "upscale": "none"},
        {"fast_steps": 1, "fast_num_candidates": 2},
        {"fast_steps": 3, "upscale_noise": 0.0, "upscale_steps": 3},
        {"steps": 4, "guidance": 3.0, "guidance_interval": (0.2, 0.9), "num_candidates": 2, "prior_guidance": 2.0},
        {"steps": 4, "sampler": "ddim", "eta": 0.5, "spacing": "even", "prior_steps": 3, "prior_num_candidates": 3},
    ],
)
def test_a_seed_draws_the_pipeline_s_picture(exported, pipe, settings):
    lite = Lite(exported)
    assert_equal_pictures(lite, pipe, **settings)
    ours = lite(CAPTIONS, n=3, seed=5, **settings)
    batched = lite(CAPTIONS, n=3, seed=5, batch_size=2, **settings)
    assert np.abs(batched.images.astype(int) - ours.images).max() <= 1


def assert_equal_pictures(lite, pipe, **settings):
    ours = lite(CAPTIONS, n=3, seed=5, **settings)
    theirs = pipe(CAPTIONS, n=3, seed=5, **settings)
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings.numpy(), rtol=0, atol=1e-4)
    difference = np.abs(ours.images.astype(int) - theirs.images)
    assert (difference <= 1).mean() >= 0.999
    assert len(np.unique(ours.images)) > 50
    assert (ours.seeds, ours.captions) == (theirs.seeds, theirs.captions)


@pytest.mark.parametrize(
    "settings",
    [
        {"prior_redraws": 3, "prior_image_threshold": 0.22},  # some pass at once, and others later
        {"prior_redraws": 2, "prior_image_threshold": 0.999, "fast_num_candidates": 2, "prior_guidance": 2.0},
    ],
)
def test_images_are_drawn_anew_as_by_the_pipeline(exported, pipe, tmp_path, settings):
    pipe = with_classes(pipe, [CAPTIONS[0], CAPTIONS[3]], logit_scale=30.0)
    prior = describe(pipe, KINDS)["prior"]
    lite = Lite(altered(exported, tmp_path / "classes", lambda description: description.update(prior=prior)))
    assert_equal_pictures(lite, pipe, **settings)
    once = lite(CAPTIONS, n=3, seed=5, **settings | {"prior_redraws": 0})
    anew = lite(CAPTIONS, n=3, seed=5, batch_size=5, **settings)
    is_changed = (abs(once.embeddings - anew.embeddings) > 1e-3).any(axis=1)
    assert 0 < is_changed.sum() < 9
    assert not is_changed[6:9].any()  # of the empty caption


@pytest.mark.parametrize(("are_classes", "candidates"), [(True, 1), (False, 3)])
def test_candidates_that_cannot_be_kept_are_not_drawn(exported, pipe, tmp_path, monkeypatch, are_classes, candidates):
    pipe = with_classes(pipe, [CAPTIONS[0], CAPTIONS[3]], logit_scale=30.0)
    if not are_classes:
        pipe.prior.reranker.class_embeddings.neg_()  # far from all captions
    prior = describe(pipe, KINDS)["prior"]
    lite = Lite(altered(exported, tmp_path / "classes", lambda description: description.update(prior=prior)))
    run_network = lite.networks
    batches = []

    def count_rows(name, *inputs):
        if name == "prior_step":
            batches.append(len(inputs[0]))
        return run_network(name, *inputs)

    monkeypatch.setattr(lite, "networks", count_rows)
    assert_equal_pictures(lite, pipe, prior_threshold=0.0, prior_num_candidates=3)
    assert set(batches) == {3 * len(CAPTIONS) * candidates}


def test_without_classes_no_image_is_judged(exported, monkeypatch):
    lite = Lite(exported)
    once = lite(CAPTIONS[0], n=2, seed=5)
    monkeypatch.setattr(Lite, "encode_image", lambda *_: pytest.fail("an image was embedded"))
    np.testing.assert_array_equal(lite(CAPTIONS[0], n=2, seed=5, prior_redraws=3).images, once.images)


def test_a_prior_in_one_pass_draws_the_pipeline_s_picture(exported, pipe, tmp_path):
    prior = converted(pipe.prior, OnePassPrior, OnePassPriorConfig(pipe.prior.config.network))

    def alter(description):
        del description["prior"]["prediction"], description["prior"]["alphas_cumprod"]
        description["prior"]["kind"] = "one_pass"

    lite = Lite(altered(exported, tmp_path / "one-pass", alter))
    assert describe(with_parts(pipe, prior=prior), KINDS | {"prior": "one_pass"})["prior"] == lite.description["prior"]
    for guidance in (1.0, 2.0):
        assert_equal_pictures(lite, with_parts(pipe, prior=prior), prior_guidance=guidance, prior_num_candidates=2)


def test_a_decoder_of_texts_draws_the_pipeline_s_picture(exported, pipe, tmp_path):
    decoder = converted(pipe.decoder, TextDecoder)
    lite = Lite(altered(exported, tmp_path / "text", lambda description: description["decoder"].update(kind="text")))
    assert_equal_pictures(lite, with_parts(pipe, decoder=decoder), steps=2, guidance=2.0, num_candidates=2)


def test_a_prior_of_residual_blocks_draws_the_pipeline_s_picture(exported, pipe, tmp_path):
    config = MLPPriorConfig(MLPConfig(16, width=8, layers=1), replace(pipe.prior.config.diffusion, prediction="x0"))
    prior = randomise(MLPPrior(config)).requires_grad_(False)
    for parameter in prior.parameters():
        parameter.copy_(parameter.half().float())
    networks = EXPORTS["prior", "mlp"](with_parts(pipe, prior=prior))
    (tmp_path / "networks").mkdir()
    write_networks(networks, tmp_path / "networks")
    assert_networks_equal(tmp_path / "networks", networks, batch=4)
    description = describe(with_parts(pipe, prior=prior), KINDS | {"prior": "mlp"})
    files = {path.name: path for path in (tmp_path / "networks").iterdir()}
    folder = altered(exported, tmp_path / "mlp", lambda old: old.update(prior=description["prior"]), **files)
    assert_equal_pictures(Lite(folder), with_parts(pipe, prior=prior), prior_guidance=1.5)


def test_images_are_embedded_as_by_the_pipeline(exported, pipe):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_allclose(Lite(exported).encode_image(images), pipe.encode_image(images).numpy(), atol=1e-5)
    with pytest.raises(UserError, match=r"uint8 \(N, 8, 8, 1\)"):
        Lite(exported).encode_image(images[:, :5])


def test_images_are_resized_for_a_clip_that_was_swapped_in(tmp_path):
    vision = VisionConfig(image_size=12, channels=3, patch_size=4, width=8, layers=1, heads=2)
    text = TextConfig(vocab_size=9, context=4, width=8, layers=1, heads=2)
    clip = randomise(CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text))).requires_grad_(False)
    pixels = 255 * torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(12, 3)
    tower = ExportedNetwork(ImageTower(clip, preprocess, 8, 8), {"pixels": pixels}, ("embedding",), "image")
    torch.testing.assert_close(tower.module(pixels), clip.encode_image(preprocess(pixels)))
    write_networks({"image": tower}, tmp_path)
    assert_networks_equal(tmp_path, {"image": tower}, batch=4)


def test_images_larger_than_the_tiles_are_told(exported):
    lite = Lite(exported)
    networks = lite.networks
    lite.networks = lambda name, *inputs: inputs[:1] if name == "upsampler_step" else networks(name, *inputs)
    lite.description["upsampler"]["factor"] = 3
    with pytest.warns(UserWarning, match="images of 24 x 24 pixels are not computed in tiles of 16 here"):
        assert lite("a bag", upscale_tile=16).images.shape == (1, 24, 24, 1)


DRAW_WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "safetensors", "huggingface_hub"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
from unclip.lite import Lite
print(Lite(sys.argv[1])("a bag", n=2).images.shape)
"""


def test_the_runtime_imports_no_pytorch(exported):
    finished = run_python("-c", DRAW_WITHOUT_TORCH, exported)
    assert finished.code == 0, finished.err
    assert finished.out.strip() == "(2, 16, 16, 1)"


def test_weights_are_stored_in_float16_and_once(exported, pipe):
    model = onnx.load(exported / "prior_step.onnx", load_external_data=False)
    inside = [tensor for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    assert all(math.prod(tensor.dims) < 64 or tensor.data_type != TensorProto.FLOAT16 for tensor in inside)
    numbers = sum(parameter.numel() for parameter in pipe.prior.parameters())
    assert (exported / "prior.weights").stat().st_size < 2 * numbers + 64 * 60  # each begins at a multiple of 64


@pytest.mark.parametrize("name", ["decoder_step.onnx", "prior.weights", "tokenizer.json", "lite.json"])
def test_changed_files_are_refused(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "changed")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"export the pipeline again|lite.json is not readable JSON"):
        Lite(folder)


@pytest.mark.parametrize(("part", "kind"), [(part, kind) for part, row in PARTS.items() for kind in row.kinds])
def test_every_kind_is_exported_or_refused_in_one_line(part, kind):
    if (part, kind) != ("prior", "autoregressive"):
        check_kinds(KINDS | {part: kind})
        return
    with pytest.raises(UserError, match=r"^a prior of kind autoregressive cannot be exported .* one_pass, mlp can$"):
        check_kinds(KINDS | {part: kind})


def test_the_export_command_leaves_a_folder_in_use_alone(exported, script):
    finished = script("unclip.cli.main", "export", exported.parent / "source", "--to", "onnx", "--out", exported)
    assert finished.code == 1
    assert finished.err.startswith(f"error: {exported} is not empty; name another folder with --out")
    assert json.loads((exported / "lite.json").read_text())["format"] == FORMAT

"""Exported pipelines, and the runtime that draws from them without PyTorch, against the pipeline itself."""

import http.server
import json
import math
import shutil
import threading
import time
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from browser import MISSING, Browser
from conftest import ROOT, run_python
from onnx import TensorProto

from unclip import UnCLIP
from unclip.decoder.consistency_decoder import ConsistencyDecoder, consistency_levels
from unclip.diffusion import noise as torch_noise
from unclip.diffusion import samplers as torch_samplers
from unclip.diffusion.process import StraightPath, VariancePreserving
from unclip.diffusion.spacing import SPACINGS
from unclip.errors import UserError
from unclip.lite import Lite
from unclip.lite.levels import Process
from unclip.lite.noise import RowNoise
from unclip.lite.reranking import choose_candidates
from unclip.lite.samplers import SAMPLERS
from unclip.onnx.export import export_onnx
from unclip.onnx.networks import networks_of
from unclip.prior.reranking import Reranker
from unclip.settings import FastDecoderSettings
from unclip.store.manifest import read_manifests
from unclip.store.sealed_json import write_record
from unclip.web.export import add_for_page, make_site

CAPTIONS = ["an image of a bag", "a dark narrow dress", "", "a coat"]


SOURCE = ROOT / "tests" / "pipelines" / "format-4"
KINDS = {part: manifest.kind for part, manifest in read_manifests(SOURCE).items()}


@pytest.fixture(scope="module")
def pipe():
    """A small pipeline with weights rounded to float16, as they are exported, whose decoder is its fast decoder too."""
    pipe = UnCLIP.from_pretrained(SOURCE)
    for part in pipe.parts.values():
        for parameter in part.parameters():
            parameter.copy_(parameter.half().float())
    fast = ConsistencyDecoder(pipe.decoder.config).eval()
    fast.load_state_dict(pipe.decoder.state_dict())
    return UnCLIP(
        pipe.clip, pipe.tokenizer, pipe.preprocess, pipe.prior, pipe.decoder, pipe.sampling, fast_decoder=fast
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The same pipeline, exported. An export of the fast decoder would take as long as the decoder's: it is copied."""
    out = tmp_path_factory.mktemp("exported") / "onnx"
    description = export_onnx(SOURCE, out)
    description["fast_decoder"] = description["decoder"]
    for name in ("condition", "step"):
        shutil.copy(out / f"decoder_{name}.onnx", out / f"fast_decoder_{name}.onnx")
        description["files"][f"fast_decoder_{name}.onnx"] = description["files"][f"decoder_{name}.onnx"]
    write_record(out / "lite.json", description)
    return out


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [16, 17, 100, 128, 784, 3072])
def test_noise_is_that_of_pytorch(count):
    seeds = [*range(150), 2**32 - 1, 2**40 + 3, 2**62]
    for stream in ((1, 0), (2,)):
        ours, theirs = RowNoise(seeds, *stream), torch_noise.RowNoise(seeds, *stream)
        for _ in range(2):  # a second call goes on where the first ended
            expected = theirs(torch.empty(len(seeds), count)).numpy()
            np.testing.assert_allclose(ours((count,)), expected, rtol=0, atol=2e-6)


def test_fewer_numbers_than_a_group_are_refused():
    with pytest.raises(ValueError, match="at least 16"):
        RowNoise([0])((15,))


@pytest.mark.parametrize("process", [VariancePreserving(), VariancePreserving(40, "linear"), StraightPath()])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_levels_are_those_of_the_pipeline(process, steps):
    table = getattr(process, "alphas_cumprod", None)
    ours = Process(None if table is None else table.numpy())
    for spacing, levels_of in SPACINGS.items():
        check_levels(ours.spaced_levels(spacing, steps), levels_of(process, steps), process)
    settings = FastDecoderSettings(min(steps, 16))
    check_levels(ours.consistency_levels(settings), consistency_levels(process, settings), process)


def check_levels(ours, theirs, process):
    np.testing.assert_allclose([level[:3] for level in ours], theirs, rtol=1e-12, atol=1e-12)
    told = [process.network_time(level.t) for level in theirs[:-1]]
    np.testing.assert_allclose([level.network_time for level in ours[:-1]], told, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_samplers_are_those_of_the_pipeline(name, spacing):
    levels = SPACINGS[spacing](VariancePreserving(), 8)
    options = {"eta": 0.7} if name == "ddim" else {}
    start = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)

    def shrink(x, level):
        return x * (0.5 * level.alpha / (0.5 * level.alpha**2 + level.sigma**2))

    expected = getattr(torch_samplers, name)(
        lambda x, level: torch_samplers.Denoised(shrink(x, level)), torch.from_numpy(start), levels,
        torch_noise.RowNoise([1, 2, 3]), **options,
    )  # fmt: skip
    ours = SAMPLERS[name](shrink, start, levels, RowNoise([1, 2, 3]), **options)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_candidates_are_chosen_as_the_pipeline_chooses(classes, threshold):
    torch.manual_seed(classes)
    reranker = Reranker(12, classes)
    text = torch.nn.functional.normalize(torch.randn(40, 12), dim=1)
    if classes:
        reranker.fit(text[:classes], 9.0)
    candidates = torch.nn.functional.normalize(torch.randn(40, 4, 12) + 2 * text[:, None], dim=2)
    expected = reranker(candidates, text, threshold)
    ours = choose_candidates(candidates.numpy(), text.numpy(), text[:classes].numpy(), 9.0, threshold)
    assert ours.tolist() == expected.tolist()


# --- whole pipelines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_networks_compute_what_the_pipeline_s_do(exported, pipe, batch):
    for name, network in networks_of(pipe, KINDS | {"fast_decoder": "consistency"}).items():
        rows = torch.arange(batch) % 3
        inputs = [tensor[rows] for tensor in network.inputs.values()]
        with torch.no_grad():
            expected = network.module(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
        names = [entry.name for entry in session.get_inputs()]
        found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"style": "faithful", "fast_steps": 0},
        {"fast_steps": 1, "fast_num_candidates": 2},
        {"steps": 4, "guidance": 3.0, "guidance_interval": (0.2, 0.9), "num_candidates": 2, "prior_guidance": 2.0},
        {"steps": 4, "sampler": "ddim", "eta": 0.5, "spacing": "even", "prior_steps": 3},
    ],
)
def test_a_seed_draws_the_pipeline_s_picture(exported, pipe, settings):
    lite = Lite(exported)
    ours = lite(CAPTIONS, n=3, seed=5, **settings)
    theirs = pipe(CAPTIONS, n=3, seed=5, **settings)
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings.numpy(), rtol=0, atol=1e-4)
    difference = np.abs(ours.images.astype(int) - theirs.images)
    assert (difference <= 1).mean() >= 0.999
    assert ours.seeds == theirs.seeds
    assert ours.captions == theirs.captions
    batched = lite(CAPTIONS, n=3, seed=5, batch_size=2, **settings)
    assert np.abs(batched.images.astype(int) - ours.images).max() <= 1


def test_images_are_embedded_as_by_the_pipeline(exported, pipe):
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
    np.testing.assert_allclose(Lite(exported).encode_image(images), pipe.encode_image(images).numpy(), atol=1e-5)
    with pytest.raises(UserError, match=r"uint8 \(N, 28, 28, 1\)"):
        Lite(exported).encode_image(images[:, :20])


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
    assert finished.out.strip() == "(2, 28, 28, 1)"


def test_weights_are_stored_in_float16(exported):
    network = onnx.load(exported / "prior_step.onnx")
    numbers = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in network.graph.initializer:
        if tensor.data_type in numbers:
            numbers[tensor.data_type] += math.prod(tensor.dims)
    assert numbers[TensorProto.FLOAT16] > 10 * numbers[TensorProto.FLOAT]


@pytest.mark.parametrize("name", ["decoder_step.onnx", "tokenizer.json", "lite.json"])
def test_changed_files_are_refused(exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "changed")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"export the pipeline again|lite.json is not readable JSON"):
        Lite(folder)


def test_a_kind_that_cannot_be_exported_is_told(pipe):
    with pytest.raises(UserError, match="a prior of kind linear cannot be exported to ONNX"):
        networks_of(pipe, {"clip": "transformer", "prior": "linear"})


def test_the_export_command_leaves_a_folder_in_use_alone(exported, script):
    finished = script("unclip.cli.main", "export", SOURCE, "--to", "onnx", "--out", exported)
    assert finished.code == 1
    assert finished.err.startswith(f"error: {exported} is not empty; name another folder with --out")
    assert json.loads((exported / "lite.json").read_text())["format"] == 1


# --- the page without a server ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """The address of the page of the exported pipeline, below a folder of a static server, and its folder."""
    if MISSING or shutil.which("npm") is None:
        pytest.skip("the page is tested in chromium, with npm to fetch its runtime; one of them is not installed")
    site = tmp_path_factory.mktemp("served") / "below" / "site"
    try:
        make_site(site)
    except UserError as error:  # no network
        pytest.skip(f"the page is not tested in the browser: {error}")
    shutil.copytree(exported, site / "model")
    add_for_page(site / "model", CAPTIONS[:2])
    handler = partial(QuietHandler, directory=str(site.parents[1]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/below/site/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""


PIXELS = """
return [...document.querySelectorAll("canvas")].map((c) => [...c.getContext("2d").getImageData(0, 0, 28, 28).data])
"""


def wait_for(driver, words: str) -> None:
    end = time.monotonic() + 60
    while words not in (text := driver.find_element("id", "message").text):
        assert time.monotonic() < end, f"the page says {text!r}"
        time.sleep(0.05)


def test_the_page_draws_the_same_pictures_in_a_browser(exported, served):
    browser = Browser()
    driver = browser.driver
    try:
        driver.get(served + "?caption=an+image+of+a+bag&seed=7&n=3")
        wait_for(driver, "Ready.")
        driver.find_element("id", "draw").click()
        wait_for(driver, "3 pictures in")
        drawn = np.array(driver.execute_script(PIXELS)).reshape(3, 28, 28, 4)[..., :1]
        address = driver.current_url
        severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.close()
    expected = Lite(exported)("an image of a bag", n=3, seed=7).images
    assert (np.abs(drawn - expected) <= 1).mean() >= 0.999
    assert "caption=an+image+of+a+bag&seed=7&n=3" in address
    assert severe == []

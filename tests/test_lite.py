"""Exported pipelines, and the runtime that draws from them without PyTorch, against the pipeline itself."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import small_pipeline
import torch
from browser import MISSING, Browser, served_folder
from conftest import run_python
from networks import randomise
from onnx import TensorProto
from PIL import Image

from unclip import UnCLIP, edit
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, VisionConfig
from unclip.decoder.consistency_decoder import ConsistencyDecoder, consistency_levels
from unclip.decoder.text_decoder import TextDecoder
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
from unclip.onnx.export import describe, export_onnx, write_networks
from unclip.onnx.networks import EXPORTS, ExportedNetwork, ImageTower, check_kinds, networks_of
from unclip.prior.mlp_model import MLPConfig
from unclip.prior.mlp_prior import MLPPrior, MLPPriorConfig
from unclip.prior.one_pass_prior import OnePassPrior, OnePassPriorConfig
from unclip.prior.reranking import Reranker
from unclip.registry import PARTS, default_kind
from unclip.settings import FastDecoderSettings
from unclip.store.checksums import file_sha256
from unclip.store.sealed_json import read_record, write_record
from unclip.web.export import add_pipeline, make_site, unpack_npm

CAPTIONS = ["a bag", "a dark wide coat", "", "a sneaker"]
KINDS = {part: default_kind(part) for part in PARTS}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An untrained pipeline with an upsampler."""
    return small_pipeline.build(tmp_path_factory.mktemp("source") / "small", dim=16, exportable=True)


@pytest.fixture(scope="module")
def pipe(source):
    """The same, opened, with weights rounded to float16, as they are exported; its decoder is its fast decoder too."""
    pipe = UnCLIP.from_pretrained(source)
    for part in pipe.parts.values():
        for parameter in part.parameters():
            parameter.copy_(parameter.half().float())
    return with_parts(pipe, fast_decoder=converted(pipe.decoder, ConsistencyDecoder))


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """The same pipeline, exported. Where it has parts of one network, that is exported once: each takes seconds."""
    out = tmp_path_factory.mktemp("exported") / "small"
    description = export_onnx(source, out)
    shutil.copy(out / "decoder.weights", out / "fast_decoder.weights")
    for name in ("condition", "step"):
        model = onnx.load(out / f"decoder_{name}.onnx", load_external_data=False)
        for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
            entry.value = entry.value.replace("decoder.weights", "fast_decoder.weights")
        (out / f"fast_decoder_{name}.onnx").write_bytes(model.SerializeToString())
        description["weights"][f"fast_decoder_{name}"] = "fast_decoder.weights"
    description["files"] |= {path.name: file_sha256(path) for path in out.glob("fast_decoder*")}
    description["fast_decoder"] = description["decoder"] | {"kind": "consistency"}
    write_record(out / "lite.json", description)
    return out


def converted(model, to, config=None):
    """The weights of a model in one of another class."""
    other = to(config or model.config).eval()
    other.load_state_dict(model.state_dict())
    return other.requires_grad_(False)


def with_parts(pipe, **parts):
    """A pipeline with other parts."""
    return UnCLIP(pipe.clip, pipe.tokenizer, pipe.preprocess, sampling=pipe.sampling,
                  **{name: part for name, part in (pipe.parts | parts).items() if name != "clip"})  # fmt: skip


def altered(exported, folder, alter, **files):
    """A copy of an exported pipeline with another description, and files from another folder."""
    copy = shutil.copytree(exported, folder)
    description = read_record(copy / "lite.json")
    alter(description)
    for name, path in files.items():
        shutil.copy(path, copy / name)
        description["files"][name] = file_sha256(path)
    write_record(copy / "lite.json", description)
    return copy


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
        {"style": "faithful", "fast_steps": 0, "upscale": "none"},
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


def test_the_export_command_leaves_a_folder_in_use_alone(exported, source, script):
    finished = script("unclip.cli.main", "export", source, "--to", "onnx", "--out", exported)
    assert finished.code == 1
    assert finished.err.startswith(f"error: {exported} is not empty; name another folder with --out")
    assert json.loads((exported / "lite.json").read_text())["format"] == 2


# --- the page without a server ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(exported, tmp_path_factory):
    """The same pipeline without optional parts, guided and with two candidates."""

    def alter(description):
        del description["fast_decoder"], description["upsampler"]
        description["weights"] = {name: file for name, file in description["weights"].items() if file[0] not in "fu"}
        description["sampling"]["decoder"] |= {"guidance": 2.0, "num_candidates": 2, "steps": 3}

    return altered(exported, tmp_path_factory.mktemp("plain") / "plain", alter)


@pytest.fixture(scope="module")
def site(exported, plain, tmp_path_factory):
    """Folder of a page with both pipelines, in a folder that is served, and axe.min.js beside it."""
    if MISSING or shutil.which("npm") is None:
        pytest.skip("the page is tested in chromium, with npm to fetch its runtime; one of them is not installed")
    folder = tmp_path_factory.mktemp("served") / "below" / "site"
    try:
        make_site(folder)
        unpack_npm(AXE, ["axe.min.js"], folder.parent)
    except UserError as error:  # no network
        pytest.skip(f"the page is not tested in the browser: {error}")
    for name, source in (("small", exported), ("plain", plain)):
        add_pipeline(folder, name, source, CAPTIONS[:2])
    return folder


@pytest.fixture(scope="module")
def browser(site):
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(site, browser):
    """A browser with the page open and ready."""
    with served_folder(site.parents[1]) as address:
        browser.driver.get("about:blank")
        browser.complaints()
        browser.hosts()
        browser.driver.get(f"{address}below/site/?seed=7&n=3&caption=a+bag")
        wait_for(browser, "Ready.")
        yield browser
    assert browser.complaints() == []
    assert browser.hosts() <= {"127.0.0.1"}


AXE = "axe-core@4.14.1"
PIXELS = """
return [...document.querySelectorAll("canvas")].map((canvas) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return Array.from({ length: width * height }, (_, i) => data[4 * i]);
});
"""


def wait_for(browser, words: str) -> None:
    browser.wait(f"return document.getElementById('message').textContent.includes({words!r})", 60)


def drawn(browser, count: int = 3) -> np.ndarray:
    """The pictures (N, H, W, 1), once they are drawn."""
    wait_for(browser, f"{count} pictures in")
    pixels = np.array(browser.driver.execute_script(PIXELS))
    side = math.isqrt(pixels.shape[1])
    return pixels.reshape(count, side, side, 1)


def choose(browser, value: str) -> None:
    browser.driver.execute_script(f"document.querySelector('input[value={value}]').click()")


def assert_alike(found: np.ndarray, expected: np.ndarray, share: float = 0.999) -> None:
    assert found.shape == expected.shape
    assert (np.abs(found - expected.astype(int)) <= 1).mean() >= share


def test_the_page_draws_python_s_pictures(exported, plain, page):
    driver = page.driver
    driver.find_element("id", "draw").click()
    assert_alike(drawn(page), Lite(exported)("a bag", n=3, seed=7).images)
    assert "caption=a+bag&seed=7&n=3&steps=2" in driver.current_url
    save = driver.find_element("css selector", "#pictures a")
    assert save.get_attribute("download") == "a-bag-7.png"
    assert save.get_attribute("href").startswith("data:image/png")
    choose(page, "plain")
    wait_for(page, "Ready.")
    driver.execute_script("document.getElementById('caption').value = 'a dark wide coat'")
    driver.find_element("id", "draw").click()
    assert_alike(drawn(page), Lite(plain)("a dark wide coat", n=3, seed=7).images)
    assert "pipeline=plain" in driver.current_url


def test_the_page_mixes_and_varies_as_python_does(pipe, page, tmp_path):
    driver = page.driver
    choose(page, "mix")
    driver.execute_script("document.getElementById('second').value = 'a sneaker'")
    driver.find_element("id", "draw").click()
    assert_alike(drawn(page), edit.mix(pipe, {"a bag": 0.5, "a sneaker": 0.5}, n=3, seed=7).images)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((30, 20))
    picture.save(tmp_path / "picture.png")
    choose(page, "vary")
    driver.find_element("id", "draw").click()
    wait_for(page, "Choose a picture first.")
    driver.find_element("id", "picture").send_keys(str(tmp_path / "picture.png"))
    driver.find_element("id", "draw").click()
    assert_alike(drawn(page), edit.vary(pipe, tmp_path / "picture.png", n=3, seed=7).images, share=0.99)


def test_the_page_is_used_by_keyboard_and_read_by_screen_readers(site, page):
    driver = page.driver
    page.focus("#caption")
    page.keys("END")
    driver.switch_to.active_element.send_keys("s\n")
    drawn(page)
    page.focus("input[value=draw]")
    page.keys("ARROW_RIGHT")
    assert driver.find_element("id", "second").is_displayed()
    page.tab_to("Draw")
    page.keys("SPACE", "ESCAPE")
    page.wait("return document.getElementById('message').textContent.match(/Stopped|pictures in/)")
    driver.execute_script((site.parent / "axe.min.js").read_text())
    for scheme, value in itertools.product(("light", "dark"), ("draw", "mix", "vary")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        choose(page, value)
        found = driver.execute_async_script("axe.run().then((result) => arguments[0](result.violations))")
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_fits_a_phone_and_a_desktop(page):
    width = "return document.documentElement.scrollWidth"
    with page.screen(390, 844):
        for value in ("mix", "vary", "draw"):
            choose(page, value)
            assert page.driver.execute_script(width) == 390
        page.driver.find_element("id", "draw").click()
        drawn(page)
        assert page.driver.execute_script(width) == 390
    assert page.overflow() == 0


def test_the_page_opens_without_a_network_once_it_was_open(site, browser):
    with served_folder(site.parents[1]) as address:
        browser.driver.get(f"{address}below/site/?n=3")
        wait_for(browser, "Ready.")
        browser.wait("return navigator.serviceWorker.controller !== null")
    browser.driver.refresh()  # the server has ended
    wait_for(browser, "Ready.")
    browser.driver.find_element("id", "draw").click()
    drawn(browser)


def test_the_page_gives_old_browsers_a_sentence(page):
    script = {"source": "delete window.DecompressionStream"}
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    page.driver.refresh()
    wait_for(page, "This browser is too old for the page.")
    page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

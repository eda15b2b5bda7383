"""The page without a server, in chromium, against the pipeline that it was exported from."""

import itertools
import math
import shutil

import numpy as np
import pytest
from browser import MISSING, Browser, served_folder
from exported_pipeline import CAPTIONS, altered, open_source
from PIL import Image

from unclip import edit
from unclip.errors import UserError
from unclip.lite import Lite
from unclip.web.export import add_pipeline, make_site, unpack_npm


@pytest.fixture(scope="module")
def pipe(exported):
    return open_source(exported)


@pytest.fixture(scope="module")
def plain(exported, tmp_path_factory):
    """The same pipeline without optional parts, guided, with two candidates, and with classes: it draws images anew."""
    classes = Lite(exported).encode_text(["a bag", "a dark wide coat"])

    def alter(description):
        del description["fast_decoder"], description["upsampler"]
        description["weights"] = {name: file for name, file in description["weights"].items() if file[0] not in "fu"}
        description["prior"] |= {"class_embeddings": classes.tolist(), "logit_scale": 30.0}
        description["sampling"]["prior"] |= {"redraws": 2, "image_threshold": 0.999}
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
    expected = Lite(plain)("a dark wide coat", n=3, seed=7)
    assert (expected.embeddings != Lite(plain)("a dark wide coat", n=3, seed=7, prior_redraws=0).embeddings).any()
    assert_alike(drawn(page), expected.images)
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

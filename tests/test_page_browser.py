"""The page in a real browser, as a visitor uses it; what it draws is judged by the rule of its captions."""

import shutil

import browser
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from data.fashion_mnist_captions import attributes
from unclip import UnCLIP
from unclip.store.index import write_index
from unclip.store.manifest import read_manifest
from unclip.store.sealed_json import read_json

if browser.MISSING:
    pytest.skip(
        f"THE PAGE IS NOT TESTED IN A BROWSER, as there is no {' and no '.join(browser.MISSING)} here "
        "(Debian: apt-get install chromium chromium-driver)",
        allow_module_level=True,
    )

COMMITTED = ROOT / "checkpoints" / "fashion-mnist"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("page") / "log.txt"


@pytest.fixture(scope="module")
def address(log, tmp_path_factory):
    """The page with two pipelines: the committed one, and an older copy without examples."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(COMMITTED, folder / "bare", ignore=shutil.ignore_patterns("examples", "captions.txt"))
    write_index(folder / "bare")
    shutil.copytree(COMMITTED, folder / "fashion-mnist")
    for path in folder.glob("fashion-mnist/*/config.json"):
        path.touch()
    with browser.served(log, "--checkpoints", str(folder)) as address:
        yield address


@pytest.fixture(scope="module")
def visitor(address):
    visitor = browser.Browser()
    yield visitor
    visitor.close()


@pytest.fixture
def page(visitor, address):
    """The page as it is when it is opened; after the test no other machine was asked, and nothing went wrong in it."""
    visitor.open(address)
    yield visitor
    assert visitor.hosts() == {"127.0.0.1"}
    assert visitor.complaints() == []


def tones(pictures) -> np.ndarray:
    """How light the garments are; there is one on each picture, on black."""
    images = torch.tensor(np.stack(pictures))[:, None]
    covered = (images >= 32).float().mean(dim=(1, 2, 3))
    assert ((covered > 0.1) & (covered < 0.95)).all(), covered
    return attributes(images)[:, 0].numpy()


def test_draw_is_live_and_ends_with_what_was_asked_for(page):
    page.fill("Captions, one per line", "a dark coat\na light coat")
    seconds = page.timed(lambda: page.press("Draw"), "return document.querySelector('.unclip img')")
    assert seconds < 3
    assert page.pictures()[0].std() > 30
    pictures = page.results(8)
    assert tones(pictures[:4]).max() < tones(pictures[4:]).min()
    pipe = UnCLIP.from_pretrained(COMMITTED)
    expected = [pipe(caption, n=4, seed=0).images[..., 0] for caption in ("a dark coat", "a light coat")]
    np.testing.assert_array_equal(pictures, np.concatenate(expected))


def test_what_is_drawn_can_be_saved_and_copied_as_a_command(page):
    page.fill("Captions, one per line", "a bag")
    page.press("Draw")
    page.results(4)
    png, gif = (page.saved(f"a[download$='.{kind}']:not(figure a)") for kind in ("png", "gif"))
    assert png.size == gif.size
    assert gif.n_frames > 5
    assert np.asarray(page.saved("figure a")).shape == (28, 28)
    command = page.copied()
    assert command.startswith("python sample.py --checkpoint")
    sampling = read_json(COMMITTED / "model_index.json")["sampling"]["decoder"]
    assert command.endswith(f"--n 4 --seed 0 --guidance {sampling['guidance']:g} --steps {sampling['steps']} 'a bag'")


def test_vary(page):
    page.tab("Vary")
    page.press("Vary")
    pictures = page.results(8)
    assert tones(pictures).max() < 140
    assert len(np.unique(pictures, axis=0)) == 8


def test_blend_has_a_slider(page):
    page.tab("Blend")
    page.press("Blend")
    small = page.results(9)[1:]
    tones([small[0], small[-1]])
    middle = page.large()
    page.slide("Position", 1)
    page.wait_until(lambda: np.array_equal(page.large(), small[-1]))
    assert not np.array_equal(page.large(), middle)


def test_edit_makes_a_dark_coat_light(page):
    page.tab("Edit")
    page.press("Edit")
    small = page.results(9)[1:]
    assert tones([small[-1]])[0] > tones([small[0]])[0] + 20
    page.slide("Amount", 0)
    page.wait_until(lambda: np.array_equal(page.large(), small[0]))


def test_mix(page):
    page.tab("Mix")
    page.press("Mix")
    tones(page.results(8))


def test_inpaint_by_brush_and_by_name(page):
    coat = np.asarray(Image.open(COMMITTED / "examples" / "coat.png"))
    page.tab("Inpaint")
    page.fill("Pictures", "1")
    page.press("Inpaint")
    for picture in page.results(1):
        np.testing.assert_array_equal(picture[:14], coat[:14])
    page.brush((0.3, 0.3), (0.7, 0.3))
    before = page.pictures()
    page.press("Inpaint")
    page.wait_until(lambda: not np.array_equal(page.pictures(), before) and len(page.results(1)) == 1)
    for picture in page.pictures():
        np.testing.assert_array_equal(picture[14:], coat[14:])
        assert (picture[:14] != coat[:14]).any()


def test_look_inside(page):
    page.tab("Look inside")
    page.press("Look inside")
    text = page.wait("return document.querySelector('.unclip table')?.closest('.unclip').innerText", 30)
    assert all(way in text for way in ("prior", "text embedding", "caption alone", "nothing", "sneaker"))
    assert len(page.pictures()) == 4


def test_what_is_wrong_is_a_line_on_the_page(page):
    page.fill("Captions, one per line", " ")
    page.press("Draw")
    assert page.problem() == "no caption; write one per line"
    page.fill("Captions, one per line", "<img src=x onerror=document.title='bad'> ${1+1} {{x}}" + " long" * 40)
    page.press("Draw")
    page.results(4)
    assert "is cut to" in page.wait("return document.querySelector('.toast-body')?.innerText")
    heading = page.wait("return document.querySelector('.unclip h3')?.innerText")
    assert heading.startswith("<img src=x onerror=document.title='bad'> ${1+1} {{x}} long")
    assert page.driver.title == "unclip"


def test_another_pipeline_can_be_chosen(page):
    example = read_manifest(COMMITTED / "clip").data["example"]
    page.choose("Pipeline", "bare")
    page.wait_until(lambda: page.element("Captions, one per line").get_attribute("value") == example)
    page.press("Draw")
    tones(page.results(4))
    page.tab("Vary")
    page.press("Vary")
    assert page.problem().startswith("no image")


def test_keyboard_is_enough(page):
    page.fill("Captions, one per line", "a bag")
    page.tab_to("Draw")
    page.keys("ENTER")
    assert len(page.results(4)) == 4
    page.focus("[role=tab][aria-selected=true]")
    page.keys("TAB", "ENTER")
    page.wait("return document.querySelector('[role=tab][aria-selected=true]').innerText.trim() == 'Vary'")


def test_phone(page, address):
    with page.phone():
        page.open(address)
        for name in ("Draw", "Blend", "Inpaint", "Look inside"):
            page.tab(name)
            assert page.overflow() <= 0, name
        page.tab("Draw")
        page.fill("Captions, one per line", "a bag")
        page.press("Draw")
        page.results(4)
        assert page.overflow() <= 0


def test_two_visitors_at_once_do_not_mix(page, address):
    """Each gets to the bit what it gets alone."""
    captions = ["a sneaker", "a dress"]
    tabs = [page.driver.current_window_handle]
    page.driver.switch_to.new_window("tab")
    page.open(address)
    tabs.append(page.driver.current_window_handle)
    for tab, caption in zip(tabs, captions, strict=True):
        page.driver.switch_to.window(tab)
        page.fill("Captions, one per line", f"{caption}\n{caption}")
    for tab in tabs:
        page.driver.switch_to.window(tab)
        page.press("Draw")
    pipe = UnCLIP.from_pretrained(COMMITTED)
    for tab, caption in zip(tabs, captions, strict=True):
        page.driver.switch_to.window(tab)
        expected = pipe([caption], n=4, seed=0).images[..., 0]
        np.testing.assert_array_equal(page.results(8), np.concatenate([expected, expected]))
    page.driver.close()
    page.driver.switch_to.window(tabs[0])


def test_server_asked_no_other_machine(page, log):
    assert "REFUSED" not in log.read_text()
    assert "Traceback" not in log.read_text()

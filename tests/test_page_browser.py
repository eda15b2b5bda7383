"""The page in a real browser, as a visitor uses it; what it draws is judged by the rule of its captions."""

import io
import re
import shutil
import zipfile

import browser
import numpy as np
import pytest
import torch
from conftest import COMMITTED
from PIL import Image

from data.fashion_mnist_captions import attributes
from unclip import UnCLIP, edit
from unclip.store.index import write_index
from unclip.store.manifest import read_manifest
from unclip.store.stored_sampling import write_sampling

if browser.MISSING:
    pytest.skip(
        f"THE PAGE IS NOT TESTED IN A BROWSER, as there is no {' and no '.join(browser.MISSING)} here "
        "(Debian: apt-get install chromium chromium-driver)",
        allow_module_level=True,
    )

FEW_STEPS = """
from unclip.edit.defaults import PAINTING
PAINTING["steps"] = 4
from unclip.page.editing import INVERSION
INVERSION["steps"] = 8
"""
"""Makes edits quick."""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("page") / "log.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pipelines of few steps: the committed one, and an older copy without examples."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(COMMITTED, folder / "bare", ignore=shutil.ignore_patterns("examples", "captions.txt"))
    write_index(folder / "bare")
    shutil.copytree(COMMITTED, folder / "fashion-mnist")
    for path in folder.glob("fashion-mnist/*/config.json"):
        path.touch()
    sampling = UnCLIP.from_pretrained(COMMITTED).sampling.override(steps=4, num_candidates=1, prior_steps=6)
    for name in ("bare", "fashion-mnist"):
        write_sampling(folder / name, sampling)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return UnCLIP.from_pretrained(folder / "fashion-mnist")


@pytest.fixture(scope="module")
def address(log, folder):
    with browser.served(log, "--checkpoints", str(folder), opening=FEW_STEPS) as address:
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


CAPTIONS = "Captions, one per line"
TABS = ("Draw", "Vary", "Blend", "Edit", "Mix", "Inpaint", "Look inside")


def same(pictures, expected) -> bool:
    return np.shape(pictures) == np.shape(expected) and bool((np.array(pictures) == expected).all())


def test_a_picture_is_drawn_at_load_large_and_in_view_on_each_screen(page):
    assert len(page.finished()) == 4
    assert page.driver.execute_script("return document.querySelectorAll('#tab-draw .chip img').length") == 8
    for width, height, least in ((390, 844, 150), (1280, 900, 200), (1920, 1080, 300)):
        with page.screen(width, height):
            page.driver.execute_script("scrollTo(0, 0)")
            page.wait(f"return document.querySelector('.pick img').getBoundingClientRect().width >= {least}")
            box = page.driver.execute_script("return document.querySelector('.pick img').getBoundingClientRect()")
            assert box["top"] + box["height"] / 2 < height, width
            assert page.is_in_view(".go-button")
            assert page.overflow() <= 0, width
            if width < 600:  # where not everything fits, and scrolling leads to the rest
                page.driver.execute_script("scrollTo(0, 10_000)")
                assert page.driver.execute_script("return scrollY") > 0
                assert page.is_in_view("#history")


def test_draw_ends_with_what_was_asked_for(page, pipe):
    page.fill(CAPTIONS, f"a dark coat{browser.NEW_LINE}a light coat")
    pictures = page.answered(lambda: page.press("Draw"))
    assert tones(pictures[:4]).max() < tones(pictures[4:]).min()
    expected = [pipe(caption, n=4, seed=0).images[..., 0] for caption in ("a dark coat", "a light coat")]
    np.testing.assert_array_equal(pictures, np.concatenate(expected))


def test_what_is_drawn_can_be_saved_and_copied_as_a_command(page):
    page.fill(CAPTIONS, "a bag")
    pictures = page.answered(lambda: page.press("Draw"))
    png, gif = (page.saved(f"a[download$='.{kind}']") for kind in ("png", "gif"))
    assert png.size == gif.size
    assert gif.n_frames == 3  # of each of the 2 steps, and the end
    with Image.open(io.BytesIO(page.downloaded("save"))) as saved:
        assert same(np.asarray(saved), pictures[0])
        assert saved.text["caption"] == "a bag"
    page.driver.execute_script("document.getElementById('size').value = 8")
    with Image.open(io.BytesIO(page.downloaded("save"))) as saved:
        assert saved.text["seed"] == "0"
        assert same(np.asarray(saved.convert("L")), pictures[0].repeat(8, axis=0).repeat(8, axis=1))
    with zipfile.ZipFile(io.BytesIO(page.downloaded("zip"))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 4
        saved = Image.open(io.BytesIO(archive.read(archive.namelist()[3])))
        assert (saved.size, saved.text["seed"]) == ((224, 224), "3")
    assert page.copied().endswith("--n 4 --seed 0 'a bag'")


def test_keyboard_is_enough(page):
    page.fill(CAPTIONS, "a bag")
    page.driver.execute_script("arguments[0].focus()", page.element(CAPTIONS))
    page.tab_to("Draw", most=2)
    drawn = page.answered(lambda: page.keys("ENTER"))
    page.driver.execute_script("arguments[0].focus()", page.element(CAPTIONS))
    assert same(page.answered(lambda: page.keys("ENTER")), drawn)
    page.driver.execute_script("arguments[0].focus()", page.element("Seed"))
    for keys in (("ENTER",), ("CONTROL", "ENTER")):
        assert same(page.answered(lambda keys=keys: page.chord(*keys)), drawn)
    page.focus("[role=tab][aria-selected=true]")
    page.keys("TAB", "ENTER")
    page.wait("return document.querySelector('[role=tab][aria-selected=true]').innerText.trim() == 'Vary'")


def test_stop_stands_in_place_of_draw_and_a_second_click_replaces_the_first(page):
    page.open_more()
    assert page.element("Steps").get_attribute("value") == ""
    page.fill("Steps", "100")
    page.fill("Candidates", "1")
    page.fill("Pictures", "16")
    page.press("Draw")
    page.press("Stop")
    page.wait_until(lambda: "stopped" in page.status())
    page.wait(browser.BUTTON, 10, "Draw")
    page.press("Draw")
    page.wait_until(lambda: re.search(r"step \d+ of \d+, [\d.]+ s, about [\d.]+ s more", page.status()))
    page.fill("Pictures", "1")
    page.fill("Steps", "2")
    page.driver.execute_script("arguments[0].focus()", page.element(CAPTIONS))
    assert len(page.answered(lambda: page.keys("ENTER"))) == 1


def test_what_is_wrong_is_a_line_in_view_beside_the_button(page):
    page.fill(CAPTIONS, " ")
    page.press("Draw")
    assert page.problem() == "no caption; write one per line"
    for number in ("0", "100"):
        page.fill("Pictures", number)
        page.press("Draw")
        page.wait_until(lambda number=number: page.problem().endswith(f"from 1 to 16, not {number}"))
    for width, height in ((390, 844), (1280, 900)):
        with page.screen(width, height):
            page.driver.execute_script("scrollTo(0, 500)")
            assert page.is_in_view(".problem")
    page.fill("Pictures", "1")
    page.fill(CAPTIONS, "<img src=x onerror=document.title='bad'> ${1+1} {{x}}" + " long" * 40)
    page.answered(lambda: page.press("Draw"))
    assert "is cut to" in page.wait("return document.querySelector('.toast-body')?.innerText")
    heading = page.wait("return document.querySelector('.unclip h2')?.innerText")
    assert heading.startswith("<img src=x onerror=document.title='bad'> ${1+1} {{x}} long")
    assert "nearest: 'a" in page.status()  # the training captions have no such words
    assert page.driver.title == "unclip"


def test_a_reload_loses_nothing_and_a_link_draws_the_same(page, address, pipe):
    page.fill(CAPTIONS, "a wide bag")
    page.fill("Seed", "41")
    page.fill("Pictures", "2")
    drawn = page.answered(lambda: page.press("Draw"))
    page.wait("return location.search.includes('caption=a+wide+bag')")
    page.driver.refresh()
    page.wait(f"return {browser.DONE}.length", 90)
    assert same(page.finished(), drawn)
    page.wait("return document.getElementById('history').innerText.includes('draw: a wide bag')")
    page.open(f"{address}?tab=mix&prompt_1=a+bag&weight_1=1&prompt_2=&n=1&seed=7")
    assert same(page.finished(), edit.mix(pipe, {"a bag": 1}, n=1, seed=7).images[..., 0])
    page.driver.execute_script("sessionStorage.clear()")


def test_a_result_can_be_sent_to_each_tab_that_takes_an_image(page, pipe):
    drawn = page.finished()
    page.driver.find_elements("css selector", ".pick")[1].click()
    for name in ("Inpaint", "Edit", "Blend", "Vary"):
        page.tab("Draw")
        page.send_to(name)
        page.wait(f"return document.querySelector('#tab-{name.lower()}')?.offsetParent", 20)
        page.wait(f"return {browser.DONE}.length", 60)
    expected = edit.vary(pipe, drawn[1], n=8).images[..., 0]
    page.wait_until(lambda: same(page.finished(), expected))
    page.tab("Edit")
    assert page.element("Before").get_attribute("value") == "a sneaker"


def test_blend_and_edit_have_a_slider(page):
    small = page.show("Blend")
    tones([small[0], small[-1]])
    assert same(page.large(), small[4])
    page.slide(1)
    assert same(page.large(), small[-1])
    small = page.show("Edit")
    assert tones([small[-1]])[0] > tones([small[0]])[0] + 20  # a dark coat becomes light
    page.slide(0)
    assert same(page.large(), small[0])


def test_vary_and_mix_draw_garments(page):
    varied = page.show("Vary")
    assert tones(varied).max() < 140
    assert len(np.unique(varied, axis=0)) == 8
    tones(page.show("Mix"))


def test_inpaint_by_brush_and_by_name(page):
    coat = np.asarray(Image.open(COMMITTED / "examples" / "coat.png"))
    for picture in page.show("Inpaint"):
        np.testing.assert_array_equal(picture[:14], coat[:14])
    page.fill("Pictures", "1")
    page.brush((0.3, 0.3), (0.7, 0.3))
    [picture] = page.answered(lambda: page.press("Inpaint"))
    np.testing.assert_array_equal(picture[14:], coat[14:])
    assert (picture[:14] != coat[:14]).any()
    page.open(page.driver.current_url)  # the strokes are in the link
    assert same(page.finished(), [picture])
    page.click(".clear")
    [picture] = page.answered(lambda: page.press("Inpaint"))
    np.testing.assert_array_equal(picture[:14], coat[:14])


def test_nobody_is_shut_out(page, tmp_path):
    """No serious finding of axe-core in any tab, and each fits a phone."""
    axe = browser.fetch_axe(tmp_path)
    for name in TABS:
        page.show(name)
        assert page.violations(axe) == [], name
    text = page.driver.execute_script("return document.querySelector('.unclip table').closest('.unclip').innerText")
    assert all(way in text for way in ("prior", "text embedding", "caption alone", "nothing"))
    nearest = [line for line in text.splitlines() if re.fullmatch(r"a\w* .*\t0\.\d\d", line)]
    assert nearest
    for caption in nearest:
        assert any(noun in caption for noun in ("sneaker", "trainer", "running shoe"))
    with page.screen(390, 844):
        for name in ("Draw", "Blend", "Inpaint", "Look inside"):
            page.tab(name)
            assert page.overflow() <= 0, name


def test_each_tab_is_filled_by_a_pipeline_without_examples(page):
    example = read_manifest(COMMITTED / "clip").data["example"]
    page.choose("Pipeline", "bare")
    page.wait_until(lambda: page.element(CAPTIONS).get_attribute("value") == example)
    page.wait(f"return {browser.DONE}.length", 60)
    for name in set(TABS) - {"Edit"}:  # a single caption leaves nothing to change
        assert page.show(name), name


def test_two_visitors_at_once_do_not_mix(page, address, pipe):
    """Each gets to the bit what it gets alone."""
    captions = ["a sneaker", "a dress"]
    tabs = [page.driver.current_window_handle]
    page.driver.switch_to.new_window("tab")
    page.open(address)
    tabs.append(page.driver.current_window_handle)
    for tab, caption in zip(tabs, captions, strict=True):
        page.driver.switch_to.window(tab)
        page.fill(CAPTIONS, f"{caption}{browser.NEW_LINE}{caption}")
    for tab in tabs:
        page.driver.switch_to.window(tab)
        page.press("Draw")
    for tab, caption in zip(tabs, captions, strict=True):
        page.driver.switch_to.window(tab)
        expected = pipe([caption], n=4, seed=0).images[..., 0]
        page.wait_until(lambda expected=expected: same(page.finished(), np.concatenate([expected, expected])))
    page.driver.close()
    page.driver.switch_to.window(tabs[0])


def test_server_asked_no_other_machine(address, log):
    assert "REFUSED" not in log.read_text()
    assert "Traceback" not in log.read_text()

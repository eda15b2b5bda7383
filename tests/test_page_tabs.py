"""Tabs of the page, without a browser: the values that they take, from the fields or from an address."""

import asyncio
import inspect
import re
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from unclip import UserError
from unclip.page.shelf import Shelf
from unclip.page.values import read_number, read_optional_number, read_seed, read_text


@pytest.fixture
def tab(two_pipelines, tmp_path):
    """A tab of the page, without a browser."""
    gradio = pytest.importorskip("gradio")
    from unclip.page.layout import Page
    from unclip.page.tabs import draw_tab

    with gradio.Blocks():
        page = Page(Shelf(two_pipelines), str(tmp_path / "uploads"))
        page.choose()
        draw_tab(page)
    return page.tabs["draw"]


def values_of(tab, **values) -> tuple:
    """The values of all fields, as the browser sends them."""
    plain = {name: field.component.value for name, field in tab.fields.items()} | {"caption": "a bag", "n": 1}
    return ("whole", *(plain | values).values(), True)


def test_what_is_wrong_is_one_line_beside_the_button_and_the_rest_stays_as_it_is(tab):
    import gradio

    wrong = {
        "n": ([0, 100, 2.5, None, "x"], "Pictures takes a whole number from 1 to 16, not "),
        "steps": ([0, 101, 1.5], "Steps takes a whole number from 1 to 100, not "),
        "guidance": ([-1, 11, "x"], "Guidance takes a number from 0 to 10, not "),
        "seed": ([-1, 0.5, None], "Seed takes a whole number from 0 to "),
        "caption": (["", " \n"], "no caption"),
        "sampler": (["x", 5], "Sampler takes one of "),
    }
    for name, (values, words) in wrong.items():
        for value in values:
            *_, (line, button, *rest) = tab.answer("visitor", values_of(tab, **{name: value}))
            assert line.startswith(f'<p class="problem" role="alert">{words}'), (name, value, line)
            assert button.value == "Draw"
            assert rest == [gradio.skip()] * 3
    assert tab.page.turns.busy == 0
    assert tab.page.turns.latest == {}


def test_each_button_takes_what_the_browser_sends(two_pipelines, tmp_path, monkeypatch):
    """All fields of all tabs, through gradio, as they are when the page is opened."""
    gradio = pytest.importorskip("gradio")
    from gradio.state_holder import SessionState

    from unclip.page.server import build

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    blocks, page = build(Shelf(two_pipelines))
    opened = page.shelf.open("whole")
    for tab in page.tabs.values():
        function = next(f for f in blocks.fns.values() if f.targets[0] == (tab.go._id, "click"))
        sent: list = ["whole"]
        for field, value in zip(tab.fields.values(), tab.starting_values(opened, {}, []), strict=True):
            start = field.component.value if value == gradio.skip() else getattr(value, "value", value)
            assert start is not None or not isinstance(field.component, gradio.Number)  # the browser would make it 0
            is_image = start and isinstance(field.component, gradio.Image)
            sent.append({"path": start, "meta": {"_type": "gradio.FileData"}} if is_image else start)
        sent += [True] if tab.lock else []
        assert len(sent) == len(function.inputs)
        values = asyncio.run(blocks.preprocess_data(function, sent, SessionState(blocks)))
        bind = inspect.signature(tab.work).bind
        monkeypatch.setattr(tab, "work", lambda *values, bind=bind, **named: [str(bind(*values, **named))])
        monkeypatch.setattr(tab, "make_recipe", lambda *_, **__: ("", ""))
        *_, (line, *_) = tab.answer("visitor", tuple(values))
        assert "done" in line, (tab.name, line)


def test_an_answer_tells_unknown_words_and_ends_with_a_link_and_a_recipe(tab):
    told = list(tab.answer("visitor", values_of(tab, caption="a green elephant", steps=2)))
    line, button, _, recipe, _ = told[-1]
    assert re.search(r"done in [\d.]+ s.*elephant.*training captions known here; nearest: ", line)
    assert "elephant" in told[0][0]
    assert button.value == "Draw"
    assert "unclip sample" in recipe
    assert "UnCLIP.from_pretrained" in recipe
    [link] = re.findall(r'href="([^"]+)"', recipe)
    query = link.replace("&amp;", "&")
    filled = dict(
        zip(tab.fields, tab.starting_values(tab.page.shelf.open("whole"), dict(parse_qsl(query[1:])), []), strict=True)
    )
    assert (filled["caption"], filled["n"], filled["seed"], filled["steps"]) == ("a green elephant", 1, 0, "2")


def test_what_an_address_names_wrongly_is_told(tab):
    problems: list[str] = []
    linked = {"tab": "draw", "n": "99", "seed": "x", "caption": "a" * 30_000, "steps": "[" * 5000}
    tab.starting_values(tab.page.shelf.open("whole"), linked, problems)
    assert len(problems) == 4
    assert all("takes" in problem for problem in problems)


def test_an_address_leads_to_no_file_but_those_that_were_uploaded(tab):
    import gradio

    from unclip.page.tabs import inpaint_tab

    with gradio.Blocks():
        inpaint_tab(tab.page)
    form = tab.page.tabs["inpaint"]
    opened = tab.page.shelf.open("whole")
    own = tab.page.store_example(opened.example_images[0])
    for image in ("/etc/passwd", "..", "", "a" * 64, own, "%2e%2e", Path(own).parent.name):
        problems: list[str] = []
        values = form.starting_values(opened, {"tab": "inpaint", "image": image}, problems)
        filled = dict(zip(form.fields, values, strict=True))
        assert (problems == []) == (image == Path(own).parent.name)
        assert Path(filled["image"]).is_relative_to(tab.page.folder)


def test_an_unlocked_seed_is_drawn_anew_and_shown(tab):
    *values, _ = values_of(tab, steps=1)
    seeds = {next(iter(tab.answer("visitor", (*values, False))))[-1] for _ in range(3)}
    assert len(seeds) == 3


def test_a_second_click_replaces_the_first_and_stop_ends_it(tab):
    first = tab.answer("visitor", values_of(tab, steps=50))
    next(first)
    other = tab.answer("another", values_of(tab, steps=1))
    next(other)
    second = tab.answer("visitor", values_of(tab, steps=1, caption="a coat"))
    next(second)
    assert len(list(first)) == 0  # it left its place
    assert "a coat" in list(second)[-2][2]
    assert "done" in list(other)[-1][0]
    third = tab.answer("visitor", values_of(tab, steps=50))
    next(third)
    assert tab.page.turns.stop("visitor")
    assert not tab.page.turns.stop("visitor")
    [(line, button, *_)] = third
    assert "stopped" in line
    assert button.value == "Draw"
    assert tab.page.turns.busy == 0


# --- values of fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.4, 7.2, 10**400, -5, None, "", float("inf"), float("nan"), True, "x", [1], {}])
def test_number_out_of_range_is_refused_in_one_line(value):
    for read in (partial(read_number, label="Steps", low=1, high=9, is_whole=True), partial(read_seed, label="Seed")):
        if read.func is read_seed and value == 0:
            continue
        with pytest.raises(UserError, match=r"takes a whole number from [^\n]*, not "):
            read(value)
    if value in (None, ""):
        assert read_optional_number(value, "Steps", 1, 9) is None
    else:
        with pytest.raises(UserError, match=r"Steps takes a whole number from 1 to 9, not "):
            read_optional_number(str(value), "Steps", 1, 9, is_whole=True)


@pytest.mark.parametrize(("text", "number"), [("3", 3), (" 3.0 ", 3), ("9", 9)])
def test_a_text_may_hold_a_number(text, number):
    assert read_optional_number(text, "Steps", 1, 9, is_whole=True) == number


@pytest.mark.parametrize("value", [float("nan"), [], {}, [1], {"path": "x"}])
def test_value_that_is_no_text_is_refused_in_one_line(value):
    with pytest.raises(UserError, match=r"takes a text[^\n]*, not"):
        read_text(value, "Caption")

"""The page without a browser: its buttons' answers, their HTML, and the pipelines that it offers."""

import asyncio
import base64
import inspect
import io
import re
import shlex
import shutil
import socket
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
from conftest import ROOT, assert_one_error_line
from PIL import Image

from unclip import UserError, edit
from unclip.cli.options import parse
from unclip.cli.sample import SampleOptions
from unclip.edit.commands import COMMANDS, command_types
from unclip.page import drawing, editing, markup, recipes, turns, watching
from unclip.page.doors import Doors, Gate
from unclip.page.examples import Examples, spread
from unclip.page.pictures import trim
from unclip.page.shelf import OpenPipeline, Shelf, complete_pipelines
from unclip.page.turns import Turns
from unclip.page.values import read_number, read_optional_number, read_seed, read_text
from unclip.page.watching import Finished, Progress, watch
from unclip.pipeline import UnCLIP
from unclip.store.index import write_index
from unclip.store.sealed_json import write_json
from unclip.unknown_words import describe_unknown_words, unknown_words

COMMITTED = ROOT / "checkpoints" / "fashion-mnist"
WEIRD = '<script>alert(1)</script> "${1+1}" {{x}} & \u202e'


@pytest.fixture(scope="module")
def opened() -> OpenPipeline:
    return OpenPipeline.open(COMMITTED, "cpu")


@pytest.fixture
def coat() -> Path:
    return COMMITTED / "examples" / "coat.png"


@pytest.fixture
def two_pipelines(tmp_path):
    """A folder with the committed pipeline, and with a copy that lacks captions and examples."""
    shutil.copytree(COMMITTED, tmp_path / "whole")
    shutil.copytree(COMMITTED, tmp_path / "bare", ignore=shutil.ignore_patterns("examples", "captions.txt"))
    write_index(tmp_path / "bare")
    return tmp_path


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def sheets(shown) -> list[str]:
    """The HTML of an answer, without its progress."""
    return [event for event in shown if not isinstance(event, Progress)]


def last(shown) -> str:
    *_, final = sheets(shown)
    return final


def pictures(html: str) -> list[np.ndarray]:
    """The pictures in a piece of the page."""
    contents = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content in contents]


def linked(html: str, ending: str) -> Image.Image:
    """The file with that ending that a link in the page saves."""
    (content,) = re.findall(rf'<a href="data:[^;]+;base64,([^"]+)" download="[^"]*\.{ending}">Save', html)
    return Image.open(io.BytesIO(base64.b64decode(content)))


# The buttons' answers


def test_draw_shows_every_step_and_ends_with_what_the_pipeline_draws(opened):
    shown = sheets(drawing.draw(opened, "a sneaker\n\n  a dark coat ", 2, 5, guidance=3.0, steps=4))
    alone = [
        opened.pipe(caption, n=2, seed=5, guidance=3.0, steps=4).images for caption in ("a sneaker", "a dark coat")
    ]
    assert [len(pictures(html)) for html in shown] == [2] * 5 + [4] * 6
    np.testing.assert_array_equal(pictures(shown[-1]), np.concatenate(alone)[..., 0])
    noise, *_ = pictures(shown[0])
    assert noise.std() > 60


def test_each_answer_tells_each_step_and_how_many_there_are(opened, coat):
    """With two candidates, as here, a watched picture is drawn a second time."""
    answers = {
        2 * 2 * 3: drawing.draw(opened, "a bag\na coat", 2, 0, steps=3),
        10: editing.vary(opened, coat, 2, 0, 0.0),
        62: editing.blend(opened, coat, coat),
        3: editing.mix(opened, "a bag", 1, "", 0, "", 0, n=1, seed=0, steps=3),
        97: editing.inpaint(opened, coat, "", "the lower half", "a light coat", 1, 0),
    }
    for total, shown in answers.items():
        told = [event for event in shown if isinstance(event, Progress)]
        assert told == [Progress(i + 1, total) for i in range(total)], total


def test_a_fast_decoder_draws_unless_a_setting_of_the_decoder_is_given(opened):
    """Other kinds of parts stand behind it: the page passes no settings that a visitor has not given."""
    pipe = UnCLIP(
        opened.pipe.clip, opened.pipe.tokenizer, opened.pipe.preprocess, opened.pipe.prior, opened.pipe.decoder,
        opened.pipe.sampling.override(num_candidates=1), fast_decoder=opened.pipe.decoder,
    )  # fmt: skip
    assert watching.expected_steps(pipe, pipe.sampling.for_drawing(), 4) == pipe.sampling.fast_decoder.steps
    assert watching.expected_steps(pipe, pipe.sampling.for_drawing(steps=7), 4) == 7


def test_few_moments_of_a_long_drawing_are_shown(opened, monkeypatch):
    """Each is sent with all the pictures before it."""
    monkeypatch.setattr(drawing, "MOMENTS", 3)
    shown = sheets(drawing.draw(opened, "a bag\na coat", 1, 0, steps=6))
    assert len(shown) <= 3 + 2 + 2 + 1  # each caption's start and result, and the links


def test_drawing_is_saved_as_a_grid_and_as_an_animation_of_it(opened):
    html = last(drawing.draw(opened, "a bag", 3, 0, steps=4))
    grid, animation = linked(html, "png"), linked(html, "gif")
    assert grid.size == animation.size
    assert animation.n_frames == 5


@pytest.mark.parametrize("caption", ["a bag", 'it\'s "quoted" $HOME; ls', "two\nof them", "--n 7"])
def test_command_draws_the_same(caption, opened):
    command, _ = recipes.draw(replace(opened, source="checkpoints/x y"), caption, 3, 7, guidance=1.5, num_candidates=2)
    words = shlex.split(command)
    assert words[:2] == ["unclip", "sample"]
    options = parse(SampleOptions, "", argv=words[2:])
    assert options.captions == tuple(caption.splitlines())
    assert (options.n, options.seed, options.guidance, options.num_candidates) == (3, 7, 1.5, 2)
    assert str(options.checkpoint) == "checkpoints/x y"


MIXED = {"prompt_1": "a bag", "weight_1": 0.5, "prompt_2": "a coat", "weight_2": 1, "prompt_3": "", "weight_3": 0}
TABS = {
    "draw": (drawing.draw, {"caption": "a bag", "n": 2, "seed": 3, "steps": 2}),
    "vary": (editing.vary, {"image": "picture.png", "n": 2, "seed": 3, "keep": 0.5}),
    "blend": (editing.blend, {"image": "picture.png", "second": "second.png"}),
    "change": (editing.change, {"image": "picture.png", "before": "a dark coat", "after": "a light coat"}),
    "mix": (editing.mix, {**MIXED, "n": 2, "seed": 3}),
    "inpaint": (
        editing.inpaint,
        {"image": "picture.png", "strokes": "", "part": "the lower half", "caption": "a coat", "n": 2, "seed": 3},
    ),
    "look_inside": (drawing.look_inside, {"caption": "a bag", "seed": 3, "image": None}),
}


@pytest.mark.parametrize("name", TABS)
def test_command_and_python_of_each_tab_draw_what_it_shows(name, opened, coat, tmp_path, monkeypatch):
    work, values = TABS[name]
    monkeypatch.setitem(editing.INVERSION, "steps", 4)
    monkeypatch.setitem(edit.DEFAULTS["inpaint"], "steps", 5)
    monkeypatch.chdir(tmp_path)
    shutil.copy(coat, "picture.png")
    shutil.copy(COMMITTED / "examples" / "ankle-boot.png", "second.png")
    shutil.copy(COMMITTED / "examples" / "lower-half.png", "mask.png")
    drawn = pictures(last(work(opened, **values)))
    drawn = drawn[1:] if name in ("blend", "change") else drawn[:1] if name == "look_inside" else drawn
    command, code = getattr(recipes, name)(opened, **values)
    monkeypatch.setattr(UnCLIP, "from_pretrained", lambda source: opened.pipe)
    space: dict = {}
    exec(code, space)
    np.testing.assert_allclose(np.array(drawn), space["images"].reshape(np.shape(drawn)), atol=1)
    program, *words = shlex.split(command)[1:]
    types = {"sample": SampleOptions, "edit": command_types(dict.fromkeys(COMMANDS, opened.pipe.sampling), "clear")}
    parse(types[program], "", argv=words)


def test_look_shows_four_ways_and_a_fifth_with_an_image(opened, coat):
    html = last(drawing.look_inside(opened, "a dark coat", 0, None))
    assert len(pictures(html)) == 4
    assert "true embedding" not in html
    html = last(drawing.look_inside(opened, "a dark coat", 0, coat))
    ways = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert ways == ["true embedding", "prior", "text embedding", "caption alone", "nothing"]


def test_nearest_training_captions_are_about_what_was_asked_for(opened):
    html = last(drawing.look_inside(opened, "a light dress", 0, None))
    near = re.findall(r"<tr><td>([^<]+)</td><td>0\.\d\d</td></tr>", html)
    assert len(near) == 8
    assert all(caption in opened.captions for caption in near)
    assert sum(any(name in caption for name in ("dress", "gown", "frock")) for caption in near) >= 6


def test_what_is_wrong_is_said_in_one_line(opened, coat):
    wrong = [
        (drawing.draw(opened, " \n ", 1, 0), "no caption"),
        (drawing.draw(opened, "a\n" * 20, 16, 0), "320 pictures"),
        (drawing.draw(opened, "a\n" * 8, 8, 0, num_candidates=16), "160 steps are 10240 steps, more than the 1600"),
        (drawing.draw(opened, "a bag", 1, None), "seed"),
        (drawing.draw(opened, "a bag", 1, -1), "seed"),
        (editing.vary(opened, None, 1, 0, 0.0), "no image"),
        (editing.blend(opened, coat, None), "no image"),
        (editing.change(opened, coat, "", "a bag"), "two captions"),
        (editing.mix(opened, "a bag", 0, "", 1, "", 0, n=1, seed=0), "weight"),
        (editing.inpaint(opened, None, "", "the lower half", "a bag", 1, 0), "no image"),
        (editing.inpaint(opened, coat, "x", "the lower half", "a bag", 1, 0), "no brush strokes"),
        (editing.inpaint(opened, coat, "AAH/", "the lower half", "a bag", 1, 0), "image of another size"),
        (drawing.look_inside(opened, "", 0, None), "no caption"),
    ]
    for shown, words in wrong:
        with pytest.raises(UserError, match=words) as error:
            last(shown)
        assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [("RGBA", (300, 200), "png"), ("P", (5, 90), "gif"), ("1", (1, 1), "png"), ("CMYK", (64, 64), "jpeg")],
)
def test_image_may_be_of_any_kind(mode, size, kind, opened, tmp_path):
    Image.new(mode, size).save(tmp_path / f"image.{kind}")
    html = last(editing.vary(opened, tmp_path / f"image.{kind}", 2, 0, 0.0))
    assert len(pictures(html)) == 2


@pytest.mark.parametrize("content", [b"", b"not an image", (COMMITTED / "examples" / "coat.png").read_bytes()[:300]])
def test_file_that_is_no_image_is_refused(content, opened, tmp_path):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UserError, match="no image that can be read"):
        last(editing.vary(opened, tmp_path / "image.png", 1, 0, 0.0))


def test_blend_goes_from_the_one_image_to_the_other(opened, coat):
    boot = COMMITTED / "examples" / "ankle-boot.png"
    html = last(editing.blend(opened, coat, boot))
    large, *frames = pictures(html)
    assert len(frames) == editing.FRAMES
    np.testing.assert_array_equal(large, frames[editing.FRAMES // 2])
    for frame, image in ((frames[0], coat), (frames[-1], boot)):
        assert np.abs(frame.astype(float) - pixels(image)).mean() < 5
    assert linked(html, "gif").n_frames == editing.FRAMES


def test_mix_adds_up_the_weights_of_a_prompt_that_is_given_twice(opened):
    once = last(editing.mix(opened, "a sneaker", 0.5, "a bag", 0.5, "", 0.7, n=2, seed=0))
    twice = last(editing.mix(opened, "a sneaker", 0.2, "a bag", 0.5, "a sneaker", 0.3, n=2, seed=0))
    np.testing.assert_allclose(pictures(once), pictures(twice), atol=1)


def test_files_of_others_may_vanish_while_old_ones_are_deleted(tmp_path):
    """As gradio moves each upload to its place."""
    is_over = threading.Event()

    def upload():
        while not is_over.is_set():
            for i in range(20):
                (tmp_path / f"{i}.part").write_bytes(b"12345")
            for i in range(20):
                (tmp_path / f"{i}.part").rename(tmp_path / f"{i}.png")

    others = threading.Thread(target=upload)
    others.start()
    try:
        for _ in range(100):
            trim(tmp_path, set(), 10**6)
    finally:
        is_over.set()
        others.join()
    trim(tmp_path, {str(tmp_path / "0.png")}, 12)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 2
    assert "0.png" in kept


# Where to paint


@pytest.mark.parametrize("size", [5, 28, 64])
def test_brush_says_where_to_paint(size):
    brushed = np.random.default_rng(0).random((size, size)) < 0.1
    strokes = base64.b64encode(np.packbits(brushed).tobytes()).decode()
    np.testing.assert_array_equal(editing.painting_mask(strokes, "the upper half", size), brushed)


@pytest.mark.parametrize("part", editing.PARTS)
def test_where_nothing_is_brushed_a_named_part_is_painted(part):
    mask = editing.painting_mask("", part, 28)
    np.testing.assert_array_equal(editing.painting_mask(base64.b64encode(bytes(98)).decode(), part, 28), mask)
    assert mask.mean() == (1 if part == "everything" else 0.5)
    assert mask[-1, 0] == (part in ("the lower half", "the left half", "everything"))


def test_painting_keeps_what_is_outside(opened, coat):
    html = last(editing.inpaint(opened, coat, "", "the lower half", "a light coat", 2, 0))
    for picture in pictures(html):
        np.testing.assert_array_equal(picture[:14], pixels(coat)[:14])
        assert (picture[14:] != pixels(coat)[14:]).any()


def test_canvas_has_the_pixels_of_the_image(opened, coat, tmp_path):
    html = editing.canvas(opened, coat, 'a"b')
    np.testing.assert_array_equal(pictures(html)[0], pixels(coat))
    assert '<canvas width="28" height="28" data-strokes="a&quot;b"' in html
    assert editing.canvas(opened, tmp_path / "no.png", "") == ""


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


def test_doors_open_to_other_machines_by_a_token_alone():
    passed = []

    async def page(scope, receive, send):
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate = Gate("0.0.0.0", "/uploads", set(), None, set, launching=False)
    assert gate.token
    assert Gate("127.0.0.1", "", set(), None, set).token is Gate("::1", "", set(), None, set).token is None
    tokens = {f"?token={gate.token}": 303, "?token=x": 403, "?token=": 403, "": 403}
    assert {query: ask(Doors(page, gate), "/", query)[0] for query in tokens} == tokens
    _, headers = ask(Doors(page, gate), "/", f"?token={gate.token}")
    kept = headers["set-cookie"].split(";")[0]
    for path in ("/", "/config", "/gradio_api/info"):
        assert ask(Doors(page, gate), path, cookie=f"a=b; {kept}")[0] == 200
        assert ask(Doors(page, gate), path, cookie=kept[:-1])[0] == 403
    assert passed == ["/", "/config", "/gradio_api/info"]


def ask(app, path: str, query: str = "", cookie: str = "") -> tuple[int, dict[str, str]]:
    """The status and the headers that an application answers with."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"example.org"), (b"cookie", cookie.encode())]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query[1:].encode(), "headers": headers}
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


# Its looks


def test_what_a_visitor_types_is_text_on_the_page(opened):
    html = last(drawing.draw(opened, WEIRD, 1, 0, steps=2))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<" not in markup.problem(WEIRD)[len('<p class="problem" role="alert">') : -len("</p>")]
    assert "<script>" not in markup.table([WEIRD], [[WEIRD]])


def test_pictures_are_embedded_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    html = markup.finished_picture(image, "noise", "seed 0", {"seed": "0"}, WEIRD)
    np.testing.assert_array_equal(pictures(html)[0], image[..., 0])
    assert 'alt="noise"' in html
    assert "<script>" not in html
    assert "pixelated" in (ROOT / "unclip" / "page" / "page.css").read_text()


# Which pipelines there are


def test_shelf_offers_complete_pipelines_alone(two_pipelines, tmp_path):
    (two_pipelines / "empty").mkdir()
    unfinished = shutil.copytree(two_pipelines / "bare", two_pipelines / "unfinished")
    write_index(unfinished, leave_out="prior")  # as when a training begins
    assert sorted(complete_pipelines(two_pipelines)) == ["bare", "whole"]


def test_shelf_opens_a_pipeline_once(two_pipelines):
    shelf = Shelf(two_pipelines)
    assert shelf.open("whole") is shelf.open("whole")
    with pytest.raises(UserError, match=r"no pipeline '\.\./x'"):
        shelf.open("../x")


def test_pipeline_without_captions_and_examples_can_be_used_all_the_same(two_pipelines):
    bare = Shelf(two_pipelines).open("bare")
    assert bare.examples.captions == tuple(bare.captions)
    assert bare.examples.images == ()
    assert len(bare.example_images) == 4  # drawn
    assert len(pictures(last(drawing.look_inside(bare, "a bag", 0, None)))) == 4


def test_example_captions_are_varied():
    captions = [f"a {colour} {thing}" for thing in ("coat", "bag", "shoe", "hat") for colour in ("red", "blue", "red")]
    assert {caption.split()[-1] for caption in spread(captions, 4)} == {"coat", "bag", "shoe", "hat"}
    assert spread(["a"], 8) == ["a"]
    assert len(set(spread(captions, 8))) == 8


@pytest.mark.parametrize(
    ("caption", "unknown"),
    [
        ("a green elephant", ["green", "elephant"]),
        ("A Bag!", []),
        ("bags", ["bags"]),
        ("", []),
        ("紅包", []),
        ("紅色", ["紅色"]),
    ],
)
def test_words_that_no_training_caption_contains_are_named(caption, unknown, opened):
    captions = ["a bag", "a dark coat", "包紅"]
    assert unknown_words(caption, captions) == unknown
    line = describe_unknown_words(opened.pipe, [caption], captions)
    assert (line is None) == (not unknown)
    assert not line or all(repr(word) in line for word in [*unknown, "a bag"])
    assert describe_unknown_words(opened.pipe, [caption], captions[:1]) is None  # which is but an example


def test_examples_that_no_index_names_are_refused(two_pipelines):
    folder = two_pipelines / "bare"
    shutil.copytree(COMMITTED / "examples", folder / "examples")
    with pytest.raises(
        UserError, match=r"not among the files of its model_index\.json; give the last training command"
    ):
        Examples.read(folder, ["a bag"])
    write_index(folder)
    assert Examples.read(folder, ["a bag"]).images


def test_examples_that_are_none_are_refused(two_pipelines):
    bad = [{"captions": []}, {"captions": [{"path": "/etc/passwd"}]}, {"change": ["a"]}, {"images": 3}, ["a bag"]]
    for content in [*bad, *({"images": [name]} for name in ("/etc/passwd", "../README.md", "", ".", "\0", "gone.png"))]:
        write_json(two_pipelines / "whole" / "examples" / "examples.json", content)
        with pytest.raises(UserError, match="examples"):
            Examples.read(two_pipelines / "whole", ["a bag"])


def test_examples_that_lead_elsewhere_are_refused(two_pipelines, coat):
    whole = two_pipelines / "whole"
    (whole / "examples" / "coat.png").unlink()
    (whole / "examples" / "coat.png").symlink_to(coat)
    with pytest.raises(UserError, match=r"names 'coat\.png', which is no image of its own"):
        Examples.read(whole, ["a bag"])
    shutil.rmtree(whole / "examples")
    (whole / "examples").symlink_to(coat.parent)
    with pytest.raises(UserError, match="no image of its own"):
        Examples.read(whole, ["a bag"])
    (two_pipelines / "linked").symlink_to(COMMITTED)  # the user's own link, to a whole pipeline
    assert len(Examples.read(two_pipelines / "linked", ["a bag"]).images) == 6


def test_page_without_pipelines_or_gradio_says_so(script, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page = "unclip.page.__main__"
    assert_one_error_line(script(page, "--checkpoints", tmp_path), "make demo")
    assert_one_error_line(script(page, "--port", 0), "--port")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_error_line(script(page, "--port", port, "--checkpoints", COMMITTED.parent), str(port), "--port")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_one_error_line(script(page), "pip install '.[page]'")


# Watching


def test_watch_tells_the_steps_then_the_result():
    def work(tell):
        for step in range(3):
            tell(step)
            watching.tell_step()
        return "done"

    assert list(watch(work, 2)) == [0, Progress(1, 2), 1, Progress(2, 2), 2, Progress(3, 3), Finished("done")]


def test_watch_raises_where_it_is_watched():
    def work(tell):
        raise UserError("bad")

    with pytest.raises(UserError, match="bad"):
        list(watch(work, 1))


def test_work_ends_when_nobody_watches():
    ended = threading.Event()

    def work(tell):
        try:
            while True:
                watching.tell_step()
        finally:
            ended.set()

    watched = watch(work, 1)
    next(watched)
    watched.close()
    assert ended.wait(5)


def test_turns_are_taken_in_order_and_a_visitor_has_one(monkeypatch):
    monkeypatch.setattr(turns, "PLACES", 1)
    line = Turns()
    first, second, third = line.begin("a", "draw"), line.begin("b", "draw"), line.begin("c", "draw")
    assert first.wait(0)
    assert not second.wait(0)
    again = line.begin("a", "vary")
    assert first.is_over
    assert first.successor is again
    first.end()
    assert not third.wait(0)
    line.stop("b")
    assert not second.wait(0)
    second.end()
    assert third.wait(0)
    third.end()
    assert again.wait(0)
    again.end()
    assert (line.busy, line.waiting, line.latest) == (0, [], {})

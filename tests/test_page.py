"""The page without a browser: its buttons' answers, their HTML, and the pipelines that it offers."""

import asyncio
import base64
import io
import re
import shlex
import shutil
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_one_error_line
from PIL import Image

from unclip import UserError
from unclip.cli.options import parse
from unclip.cli.sample import SampleOptions
from unclip.page import answers, markup
from unclip.page.doors import Doors, Gate
from unclip.page.shelf import Examples, OpenPipeline, Shelf, complete_pipelines
from unclip.page.values import read_number, read_seed, read_text
from unclip.store.index import write_index
from unclip.store.sealed_json import write_json
from unclip.trajectory import Moment, watch_drawing

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


def last(shown):
    *_, final = shown
    return final


def pictures(html: str) -> list[np.ndarray]:
    """The pictures in a piece of the page."""
    contents = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content in contents]


def linked(html: str, ending: str) -> Image.Image:
    """The file with that ending that a link in the page saves."""
    (content,) = re.findall(rf'<a href="data:[^;]+;base64,([^"]+)" download="[^"]*\.{ending}">Save', html)
    return Image.open(io.BytesIO(base64.b64decode(content)))


# What the buttons answer


def test_draw_shows_every_step_and_ends_with_what_the_pipeline_draws(opened):
    shown = [html for (html,) in answers.draw(opened, "a sneaker\n\n  a dark coat ", 2, 5, 3.0, 4)]
    alone = [
        opened.pipe(caption, n=2, seed=5, guidance=3.0, steps=4).images for caption in ("a sneaker", "a dark coat")
    ]
    assert [len(pictures(html)) for html in shown] == [2] * 5 + [4] * 6
    np.testing.assert_array_equal(pictures(shown[-1]), np.concatenate(alone)[..., 0])
    noise, *_ = pictures(shown[0])
    assert noise.std() > 60


def test_few_moments_of_a_long_drawing_are_shown(opened, monkeypatch):
    """Each is sent with all the pictures before it."""
    monkeypatch.setattr(answers, "MOMENTS", 3)
    shown = list(answers.draw(opened, "a bag\na coat", 1, 0, 1.0, 6))
    assert len(shown) <= 3 + 2 + 2 + 1  # each caption's start and result, and the links


def test_drawing_is_saved_as_a_grid_and_as_an_animation_of_it(opened):
    (html,) = last(answers.draw(opened, "a bag", 3, 0, 2.5, 4))
    grid, animation = linked(html, "png"), linked(html, "gif")
    assert grid.size == animation.size
    assert animation.n_frames == 5


@pytest.mark.parametrize("caption", ["a bag", 'it\'s "quoted" $HOME; ls', "two\nof them", "--n 7"])
def test_command_draws_the_same(caption):
    words = shlex.split(answers.sample_command("checkpoints/x y", caption, 3, 7, 1.5, 20))
    assert words[:2] == ["python", "sample.py"]
    options = parse(SampleOptions, "", argv=words[2:])
    assert options.captions == tuple(caption.splitlines())
    assert (options.n, options.seed, options.guidance, options.steps) == (3, 7, 1.5, 20)
    assert str(options.checkpoint) == "checkpoints/x y"


def test_look_shows_four_ways_and_a_fifth_with_an_image(opened, coat):
    (html,) = last(answers.look_inside(opened, "a dark coat", 0, None))
    assert len(pictures(html)) == 4
    assert "true embedding" not in html
    (html,) = last(answers.look_inside(opened, "a dark coat", 0, coat))
    ways = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert ways == ["true embedding", "prior", "text embedding", "caption alone", "nothing"]


def test_nearest_training_captions_are_about_what_was_asked_for(opened):
    (html,) = last(answers.look_inside(opened, "a light dress", 0, None))
    near = re.findall(r"<tr><td>([^<]+)</td><td>0\.\d\d</td></tr>", html)
    assert len(near) == 8
    assert all(caption in opened.captions for caption in near)
    assert sum(any(name in caption for name in ("dress", "gown", "frock")) for caption in near) >= 6


def test_what_is_wrong_is_said_in_one_line(opened, coat):
    wrong = [
        (answers.draw(opened, " \n ", 1, 0, 2.5, 4), "no caption"),
        (answers.draw(opened, "a\n" * 20, 16, 0, 2.5, 4), "320 pictures"),
        (answers.draw(opened, "a bag", 1, None, 2.5, 4), "seed"),
        (answers.draw(opened, "a bag", 1, -1, 2.5, 4), "seed"),
        (answers.vary(opened, None, 1, 0, 0.0), "no image"),
        (answers.blend(opened, coat, None, 0.5), "no image"),
        (answers.change(opened, coat, "", "a bag", 0.5), "two captions"),
        (answers.mix(opened, 1, 0, "a bag", 0, "", 1), "weight"),
        (answers.inpaint(opened, None, None, "the lower half", "a bag", 1, 0), "no image"),
        (answers.look_inside(opened, "", 0, None), "no caption"),
    ]
    for shown, words in wrong:
        with pytest.raises(UserError, match=words) as error:
            last(shown)
        assert "\n" not in str(error.value)


def test_line_of_an_error_leaves_the_rest_of_the_page_as_it_is(two_pipelines):
    gradio = pytest.importorskip("gradio")
    from unclip.page.tabs import answer_or_problem

    shelf = Shelf(two_pipelines)
    ((line, rest),) = answer_or_problem(shelf, answers.draw, 1, "whole", "", 1, 0, 2.5, 4)
    assert re.fullmatch(r'<p class="problem" role="alert">no caption[^<]*</p>', line)
    assert rest == gradio.skip()
    line, _ = last(answer_or_problem(shelf, answers.draw, 1, "whole", "a bag", 1, 0, 2.5, 2))
    assert line == ""


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [("RGBA", (300, 200), "png"), ("P", (5, 90), "gif"), ("1", (1, 1), "png"), ("CMYK", (64, 64), "jpeg")],
)
def test_image_may_be_of_any_kind(mode, size, kind, opened, tmp_path):
    Image.new(mode, size).save(tmp_path / f"image.{kind}")
    (html,) = last(answers.vary(opened, tmp_path / f"image.{kind}", 2, 0, 0.0))
    assert len(pictures(html)) == 2


@pytest.mark.parametrize("content", [b"", b"not an image", (COMMITTED / "examples" / "coat.png").read_bytes()[:300]])
def test_file_that_is_no_image_is_refused(content, opened, tmp_path):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UserError, match="no image that can be read"):
        last(answers.vary(opened, tmp_path / "image.png", 1, 0, 0.0))


def test_blend_goes_from_the_one_image_to_the_other(opened, coat):
    boot = COMMITTED / "examples" / "ankle-boot.png"
    frames, large, film = last(answers.blend(opened, coat, boot, 1.0))
    assert len(frames) == len(pictures(film)) == answers.FRAMES
    np.testing.assert_array_equal(pictures(large)[0], frames[-1, ..., 0])
    for frame, image in ((frames[0], coat), (frames[-1], boot)):
        assert np.abs(frame[..., 0].astype(float) - pixels(image)).mean() < 5
    assert linked(film, "gif").n_frames == answers.FRAMES


def test_an_edit_shows_the_position_that_is_asked_for_before_all_others(opened, coat):
    (none, first, _), (frames, large, film) = answers.change(opened, coat, "a dark coat", "a light coat", 0.5)
    assert none is None
    assert len(frames) == len(pictures(film)) == answers.FRAMES
    np.testing.assert_allclose(pictures(first)[0], pictures(large)[0], atol=1)


def test_mix_adds_up_the_weights_of_a_prompt_that_is_given_twice(opened):
    (once,) = last(answers.mix(opened, 2, 0, "a sneaker", 0.5, "a bag", 0.5, "", 0.7))
    (twice,) = last(answers.mix(opened, 2, 0, "a sneaker", 0.2, "a bag", 0.5, "a sneaker", 0.3))
    np.testing.assert_allclose(pictures(once), pictures(twice), atol=1)


# Where to paint


def strokes(size, *places) -> Image.Image:
    layer = np.zeros((size[1], size[0], 4), np.uint8)
    for place in places:
        layer[place] = 255
    return Image.fromarray(layer)


def test_brush_says_where_to_paint():
    mask = answers.painting_mask(strokes((280, 280), np.s_[25:39, 270:]), "the upper half", 28)
    assert mask.shape == (28, 28)
    assert mask.sum() == 2
    assert mask[2:4, 27].all()


@pytest.mark.parametrize("part", answers.PARTS)
def test_where_nothing_is_brushed_a_named_part_is_painted(part):
    mask = answers.painting_mask(strokes((40, 20)), part, 28)
    assert mask.mean() == (1 if part == "everything" else 0.5)
    assert mask[-1, 0] == (part in ("the lower half", "the left half", "everything"))


def test_painting_keeps_what_is_outside(opened, coat):
    (html,) = last(answers.inpaint(opened, coat, None, "the lower half", "a light coat", 2, 0))
    for picture in pictures(html):
        np.testing.assert_array_equal(picture[:14], pixels(coat)[:14])
        assert (picture[14:] != pixels(coat)[14:]).any()


def test_canvas_has_room_for_a_brush(opened, coat, tmp_path):
    large = np.asarray(answers.draw_canvas(opened, coat))
    np.testing.assert_array_equal(large, pixels(coat).repeat(12, axis=0).repeat(12, axis=1))
    assert answers.draw_canvas(opened, tmp_path / "no.png") is None


@pytest.mark.parametrize("value", [0, 0.4, 1, 7.2, 10**400, -5, None, "", float("inf")])
def test_number_is_moved_into_its_range(value):
    assert 1 <= read_number(value, "Steps", 1, 100, is_whole=True) <= 100


@pytest.mark.parametrize("value", ["x", float("nan"), [], {}, [1], {"path": "x"}])
def test_value_of_another_kind_is_refused_in_one_line(value):
    reads = [partial(read_number, label="Steps", low=1, high=9), read_seed]
    for read in [*reads, partial(read_text, label="Caption")] if value != "x" else reads:
        with pytest.raises(UserError, match=r"takes a (whole )?(number|text)[^\n]*, not"):
            read(value)


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


# What it looks like


def test_what_a_visitor_types_is_text_on_the_page(opened):
    (html,) = last(answers.draw(opened, WEIRD, 1, 0, 2.5, 2))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<" not in markup.problem(WEIRD)[len('<p class="problem" role="alert">') : -len("</p>")]
    assert "<script>" not in markup.table([WEIRD], [[WEIRD]])


def test_pictures_are_embedded_as_they_are_and_enlarged_by_a_whole_factor():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    html = markup.picture(image, "noise", name="noise.png")
    np.testing.assert_array_equal(pictures(html)[0], image[..., 0])
    assert "width: 112px" in html
    assert 'alt="noise"' in html
    assert "pixelated" in markup.CSS


@pytest.mark.parametrize(("position", "index"), [(0, 0), (0.49, 1), (0.5, 1), (0.51, 1), (1, 2)])
def test_slider_shows_the_nearest_frame(position, index):
    frames = np.arange(3, dtype=np.uint8).repeat(16).reshape(3, 4, 4, 1)
    assert (pictures(answers.frame_at(frames, position))[0] == index).all()


def test_slider_shows_nothing_before_there_are_frames():
    assert answers.frame_at(None, 0.5) == ""


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
    assert len(pictures(last(answers.look_inside(bare, "a bag", 0, None))[0])) == 4


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


def moment(step: int) -> Moment:
    return Moment(range(1), step, 3, 0, np.zeros(1), np.zeros(1))


def test_watch_tells_the_moments_then_the_result():
    def work(on_step):
        for step in range(3):
            on_step(moment(step))
        return "done"

    *moments, result = watch_drawing(work)
    assert [told.step for told in moments] == [0, 1, 2]
    assert result == "done"


def test_watch_raises_where_it_is_watched():
    def work(on_step):
        raise UserError("bad")

    with pytest.raises(UserError, match="bad"):
        list(watch_drawing(work))


def test_drawing_ends_when_nobody_watches():
    ended = threading.Event()

    def work(on_step):
        try:
            while True:
                on_step(moment(0))
        finally:
            ended.set()

    watched = watch_drawing(work)
    next(watched)
    watched.close()
    assert ended.wait(5)

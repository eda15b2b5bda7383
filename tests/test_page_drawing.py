"""Drawing on the page, without a browser: its answers, their HTML, and the commands that draw the same."""

import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import COMMITTED, ROOT
from page_answers import last, linked, pictures, sheets
from small_pipeline import build

from unclip import UserError, edit
from unclip.cli.options import parse
from unclip.cli.sample import SampleOptions
from unclip.edit.commands import COMMANDS, command_types
from unclip.page import drawing, editing, markup, recipes, watching
from unclip.page.watching import Progress
from unclip.pipeline import UnCLIP

WEIRD = '<script>alert(1)</script> "${1+1}" {{x}} & \u202e'


def test_draw_shows_every_step_and_ends_with_what_the_pipeline_draws(opened):
    settings = {"guidance": 3.0, "steps": 4}
    watched = {"on_step": lambda moment: None}  # draws the kept candidates once more, in other batches
    shown = sheets(drawing.draw(opened, "a sneaker\n\n  a dark coat ", 2, 5, **settings))
    captions = ("a sneaker", "a dark coat")
    alone, unwatched = (
        np.concatenate([opened.pipe(caption, n=2, seed=5, **settings, **how).images[..., 0] for caption in captions])
        for how in (watched, {})
    )
    assert [len(pictures(html)) for html in shown] == [2] * 5 + [4] * 6
    np.testing.assert_array_equal(pictures(shown[-1]), alone)
    assert np.abs(alone.astype(int) - unwatched).max() <= 1
    noise, *_ = pictures(shown[0])
    assert noise.std() > 60


def test_each_answer_tells_each_step_and_how_many_there_are(opened, coat):
    """With two candidates, as here, a watched picture is drawn a second time; one that is drawn anew is not counted."""
    answers = {
        2 * 2 * 3: drawing.draw(opened, "a bag\na coat", 2, 0, steps=3, prior_redraws=0),
        2: editing.vary(opened, coat, 2, 0, 0.0),
        62: editing.blend(opened, coat, coat),
        3: editing.mix(opened, "a bag", 1, "", 0, "", 0, n=1, seed=0, steps=3),
        97: editing.inpaint(opened, coat, "", "the lower half", "a light coat", 1, 0),
    }
    for total, shown in answers.items():
        told = [event for event in shown if isinstance(event, Progress)]
        assert told == [Progress(i + 1, total) for i in range(total)], total


def test_pictures_that_are_drawn_anew_do_not_bring_progress_beyond_its_end(opened):
    shown = drawing.draw(opened, "a bag\na coat", 2, 0, fast_steps=1, prior_redraws=2, prior_image_threshold=1.0)
    told = [event for event in shown if isinstance(event, Progress)]
    assert [event.done for event in told] == [1, 2, 2, 2, 3, 4, 4, 4]
    assert all(event.total == 4 for event in told)


def test_without_classes_no_second_drawing_is_expected(tmp_path):
    pipe = UnCLIP.from_pretrained(build(tmp_path / "pipeline"))
    sampling = pipe.sampling.override(prior_redraws=3, num_candidates=1, steps=2)
    assert watching.expected_steps(pipe, sampling, 4, is_watched=True) == 2


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


# --- commands ---------------------------------------------------------------------------------------------------------


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


# --- HTML -------------------------------------------------------------------------------------------------------------


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

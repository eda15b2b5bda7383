"""The frame of each tab: labelled fields, a button, a line of messages, and results with a link and a recipe."""

import json
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr

from unclip.errors import UserError
from unclip.page import markup
from unclip.page.pictures import find_stored, store
from unclip.page.recipes import Recipe
from unclip.page.shelf import OpenPipeline, Shelf
from unclip.page.turns import Turn, Turns
from unclip.page.values import read_text, split_lines
from unclip.page.watching import Progress
from unclip.unknown_words import describe_unknown_words

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Hides the page's functions from gradio's API."""
QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
DRAWING: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": None, **QUIET}
"""Clicks reach `Turns` at once, which decides who waits."""
STOP = "Stop"
STOP_AFTER = 0.5
"""Seconds after which Stop stands in place of a button's name, so that a double click does not stop what it began."""
REFRESH = 0.15
"""Seconds between two lines of progress."""
SKIP = gr.skip()


@dataclass
class Field:
    """A field of a tab: its component, how its value is read, and what a pipeline puts into it."""

    component: Any
    read: Callable[[Any], Any]
    """Raises UserError for a value that cannot be used."""
    default: Callable[[OpenPipeline], Any] | None = None
    is_caption: bool = False
    """Whether its words are looked up in the training captions."""


class Page:
    """All tabs, while the page is built: the chosen pipeline, and the components that depend on it."""

    def __init__(self, shelf: Shelf, folder: str):
        """`folder` holds visitors' files."""
        self.shelf = shelf
        self.folder = folder
        self.turns = Turns()
        self.tabs: dict[str, Tab] = {}
        self.followers: list[tuple[Any, Callable[[OpenPipeline], Any]]] = []
        self.kept: set[str] = set()
        """Files of examples."""
        self.query = gr.Textbox(visible=False)
        """The part of the page's address behind the question mark."""
        self.chosen: Any = None

    def choose(self) -> None:
        """Place the choice of the pipeline."""
        names = self.shelf.names
        self.chosen = gr.Dropdown(names, value=names[0], label="Pipeline", filterable=False, elem_id="pipeline")
        self.chosen.preprocess = partial(read_text, label="Pipeline")

    def follow(self, component: Any, value: Callable[[OpenPipeline], Any]) -> None:
        """Let the chosen pipeline set a component: when the page is opened, and at each choice."""
        self.followers.append((component, value))

    def store_example(self, image: Any) -> str:
        file = store(image, self.folder)
        self.kept.add(file)
        return file

    def connect(self, blocks: gr.Blocks, tabs: gr.Tabs) -> None:
        """Fill the page when it is opened, from its address, and when another pipeline is chosen."""
        fields = [field for tab in self.tabs.values() for field in tab.fields.values()]
        outputs = [self.chosen, tabs, *(field.component for field in fields)]
        outputs += [component for component, _ in self.followers]
        outputs += [component for tab in self.tabs.values() for component in (tab.status, tab.result, tab.recipe)]
        address = "() => [document.getElementById('pipeline')?.querySelector('input')?.value ?? '', location.search]"
        opened = blocks.load(self.fill, [self.chosen, self.query], outputs, js=address, **QUIET)
        chosen = self.chosen.input(self.fill, [self.chosen, self.query], outputs, js="(name) => [name, '']", **QUIET)
        for event in (opened, chosen):
            event.then(None, js="() => unclip.filled()", **QUIET)

    def fill(self, name: str, query: str) -> list[Any]:
        """The values of all that follows the choice of a pipeline, and of the fields that the address names."""
        linked = dict(parse_qsl(read_text(query, "The address", 30_000).removeprefix("?"), keep_blank_values=True))
        name = linked.get("pipeline", name or self.shelf.names[0])
        problems: list[str] = []
        try:
            opened = self.shelf.open(name)
            tab_values = [tab.starting_values(opened, linked, problems) for tab in self.tabs.values()]
            followers = [value(opened) for _, value in self.followers]
        except UserError as error:
            opened = None
            problems = [str(error)]
            tab_values = [[SKIP] * len(tab.fields) for tab in self.tabs.values()]
            followers = [SKIP] * len(self.followers)
        status = "".join(map(markup.problem, problems))
        tab = linked.get("tab", next(iter(self.tabs)))
        selected = gr.Tabs(selected=tab) if tab in self.tabs and query else SKIP
        chosen = gr.Dropdown(value=name) if opened else SKIP
        cleared = [status, "", ""] * len(self.tabs)
        return [chosen, selected, *(value for values in tab_values for value in values), *followers, *cleared]


class Tab:
    """One tab: fields, a button, and what it answers."""

    def __init__(self, page: Page, name: str, work: Callable[..., Any], recipe: Callable[..., Recipe]):
        self.page = page
        self.name = name
        self.slug = name.lower().replace(" ", "-")
        self.work = work
        self.make_recipe = recipe
        self.fields: dict[str, Field] = {}
        self.submits: list[Any] = []
        """Events that ask for an answer as the button does."""
        self.lock: Any = None
        page.tabs[self.slug] = self

    def add(self, name: str, component: Any, read: Callable[..., Any], default: Any = None, **options: Any) -> Any:
        """Add a field. Its value is read by `read(value, label)`, and `default(opened)` fills it. Returns it."""
        if not isinstance(component, gr.Image):
            component.preprocess = lambda value: value  # read by the answer, which can report a problem
        self.fields[name] = Field(component, partial(read, label=component.label), default, **options)
        return component

    def place_button(self) -> None:
        self.button = gr.Button(self.name, variant="primary", elem_classes="go-button", min_width=120)
        self.go = gr.Button(f"{self.name} anew", elem_classes="go")  # hidden; page.js presses it

    def place_status(self) -> None:
        opening = "opening the pipeline; the first time takes some seconds"
        self.status = html(markup.notice(opening), elem_classes="status")

    def place_results(self) -> None:
        self.result = html(elem_classes="result")
        self.recipe = html()

    def starting_values(self, opened: OpenPipeline, linked: dict[str, str], problems: list[str]) -> list[Any]:
        """Values of the fields: of the page's address if it names this tab, else of the pipeline."""
        linked = linked if linked.get("tab", next(iter(self.page.tabs))) == self.slug else {}
        values = []
        for name, field in self.fields.items():
            value = field.default(opened) if field.default else SKIP
            if name in linked:
                try:
                    value = self.linked_value(field, linked[name])
                except UserError as error:
                    problems.append(str(error))
            values.append(value)
        return values

    def linked_value(self, field: Field, text: str) -> Any:
        """A field's value in an address. Raises UserError for one that cannot be used."""
        if isinstance(field.component, gr.Image):
            return find_stored(text, self.page.folder)
        value = parse_json(text) if isinstance(field.component, gr.Number | gr.Slider | gr.Checkbox) else text
        field.read(value)
        return value

    def link(self, pipeline: str, values: dict[str, Any]) -> str:
        """The address that draws these values again."""
        pairs = {"tab": self.slug}
        if len(self.page.shelf.names) > 1:
            pairs["pipeline"] = pipeline
        for name, value in values.items():
            if value is None or value == "":
                continue
            is_image = isinstance(self.fields[name].component, gr.Image)
            pairs[name] = Path(value).parent.name if is_image else as_text(value)
        return f"?{urlencode(pairs)}"

    def connect(self) -> None:
        """Let the button, and all other ways to ask, be answered."""
        inputs = [self.page.chosen, *(field.component for field in self.fields.values())]
        inputs += [self.lock] if self.lock else []
        outputs = [self.status, self.button, self.result, self.recipe]
        outputs += [self.fields["seed"].component] if "seed" in self.fields else []

        def answer(request: gr.Request, *values: Any) -> Iterator[Any]:
            yield from self.answer(str(request.session_hash), values)

        def press(request: gr.Request, label: str, *values: Any) -> Iterator[Any]:
            if label == STOP and self.page.turns.stop(str(request.session_hash)):
                yield self.shown(SKIP)  # the click that ends says so: nothing of it may come later
            elif label == STOP:
                yield self.shown(markup.notice("stopped"), button=self.name)
            else:
                yield from self.answer(str(request.session_hash), values)

        finished = f"() => unclip.finished('{self.slug}')"
        asked = gr.on([self.go.click, *self.submits], answer, inputs, outputs, js=self.with_strokes(1), **DRAWING)
        pressed = self.button.click(press, [self.button, *inputs], outputs, js=self.with_strokes(2), **DRAWING)
        for event in (asked, pressed):
            event.then(None, js=finished, **QUIET)

    def with_strokes(self, first: int) -> str | None:
        """JavaScript that puts the brush's strokes among the values of a click, of which this is the first field's."""
        if "strokes" not in self.fields:
            return None
        return f"(...values) => unclip.withStrokes(values, {first + list(self.fields).index('strokes')})"

    def shown(self, status: Any, button: Any = SKIP, result: Any = SKIP, recipe: Any = SKIP, seed: Any = SKIP) -> Any:
        """Values of the outputs."""
        if button is not SKIP:
            button = gr.Button(button, variant="stop" if button == STOP else "primary")
        return status, button, result, recipe, *([seed] if "seed" in self.fields else [])

    def answer(self, session: str, raw: tuple[Any, ...]) -> Iterator[Any]:
        """Show what the visitor asked for, while it is drawn; or one line that says why not."""
        turn = self.page.turns.begin(session, self.slug)
        try:
            yield from self.answer_turn(turn, raw)
        except UserError as error:
            yield self.shown(markup.problem(str(error)), button=self.name)
        except Exception as error:
            traceback.print_exc()
            line = f"the page failed ({type(error).__name__}); its terminal says why"
            yield self.shown(markup.problem(line), button=self.name)
        finally:
            turn.end()

    def answer_turn(self, turn: Turn, raw: tuple[Any, ...]) -> Iterator[Any]:
        pipeline = read_text(raw[0], "Pipeline")
        named = dict(zip(self.fields, raw[1:], strict=False))
        seed: Any = SKIP
        if self.lock and raw[-1] is False:
            seed = secrets.randbelow(2**31)
            named["seed"] = seed
        values = {name: field.read(named[name]) for name, field in self.fields.items()}
        while not turn.wait(STOP_AFTER):
            if turn.is_over:
                yield from self.leave(turn)
                return
            yield self.shown(markup.notice("waiting until others have drawn"), STOP)
        opened = self.page.shelf.open(pipeline)
        notes = self.unknown_words(opened, values)
        yield self.shown(markup.notice("drawing", *notes), seed=seed)
        settings = given(values)
        began = time.monotonic()
        last_line = began
        recipe: Any = ""  # until all is drawn
        button: Any = SKIP
        for event in self.work(opened, **settings):
            if turn.is_over:
                yield from self.leave(turn)
                return
            now = time.monotonic()
            if isinstance(event, Progress) and now - last_line < REFRESH:
                continue
            button = STOP if now - began > STOP_AFTER else SKIP
            if isinstance(event, Progress):
                last_line = now
                line = describe_progress(event, now - began)
                yield self.shown(markup.progress(event.done, event.total, line, *notes), button)
            else:
                yield self.shown(SKIP, button, event, recipe)
        line = f"done in {time.monotonic() - began:.1f} s"
        recipe = markup.recipe(self.link(pipeline, named), *self.make_recipe(opened, **settings))
        yield self.shown(markup.notice(line, *notes), self.name, recipe=recipe)

    def leave(self, turn: Turn) -> Iterator[Any]:
        """Last words of a click that is over, unless another in the same tab replaces it."""
        if not turn.successor or turn.successor.tab != self.slug:
            yield self.shown(markup.notice("stopped"), self.name)

    def unknown_words(self, opened: OpenPipeline, values: dict[str, Any]) -> list[str]:
        """Lines about words of the captions that the training captions do not contain."""
        text = "\n".join(values[name] for name, field in self.fields.items() if field.is_caption)
        line = describe_unknown_words(opened.pipe, split_lines(text), opened.captions, lambda: opened.text_embeddings)
        return [line] if line else []


def html(content: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(content, apply_default_css=False, padding=False, **options)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a tab's work: its values, without settings that are left to the pipeline."""
    optional = ("steps", "guidance", "sampler", "num_candidates", "style", "upscale")
    return {name: value for name, value in values.items() if name not in optional or value not in (None, "")}


def describe_progress(progress: Progress, seconds: float) -> str:
    left = seconds * (progress.total - progress.done) / max(1, progress.done)
    return f"step {progress.done} of {progress.total}, {seconds:.1f} s, about {left:.1f} s more"


def parse_json(text: str) -> Any:
    """A number or a switch as it stands in an address; any other text as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""The seven tabs: each places its fields, its button and its results."""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from unclip.errors import UserError, shown
from unclip.page import drawing, editing, markup, recipes
from unclip.page.layout import QUIET, Page, Tab, html
from unclip.page.pictures import PickedFile
from unclip.page.shelf import OpenPipeline
from unclip.page.values import (
    LONGEST,
    MOST_PICTURES,
    read_choice,
    read_file,
    read_number,
    read_optional_number,
    read_seed,
    read_switch,
    read_text,
)

OWN = "the pipeline's own"
SAMPLERS = (OWN, "dpmpp", "ddim", "ddpm")
STYLES = ("clear", "faithful")


@contextlib.contextmanager
def beside_results(tab: Tab) -> Iterator[None]:
    """Place the results, and a narrow column of settings beside them."""
    with gr.Row():
        with gr.Column(scale=4):
            tab.place_results()
        with gr.Column(scale=1, min_width=260):
            yield


def draw_tab(page: Page) -> None:
    tab = Tab(page, "Draw", drawing.draw, recipes.draw)
    with gr.Row(elem_classes="bar"):
        caption = caption_field(tab, "caption", "Captions, one per line", longest=drawing.LONGEST_TEXT)
        page_default(tab, "caption", 0)
        tab.place_button()
    tab.place_status()
    chips(tab, caption, "Examples to draw", lambda opened: opened.examples.captions, caption_chip)
    with beside_results(tab):
        number_and_seed(tab, 4)
        more_settings(tab)
    tab.connect()


def vary_tab(page: Page) -> None:
    tab = Tab(page, "Vary", editing.vary, recipes.vary)
    with gr.Row(elem_classes="bar"):
        image_field(tab, "image", "Image", 0)
        tab.place_button()
    tab.place_status()
    with beside_results(tab):
        number_and_seed(tab, 8)
        share(tab, "keep", "Keep", 0, "Share of the image's own noise: 0 varies most, 1 gives the image itself.")
    tab.connect()


def blend_tab(page: Page) -> None:
    tab = Tab(page, "Blend", editing.blend, recipes.blend)
    with gr.Row(elem_classes="bar"):
        image_field(tab, "image", "First image", 0)
        image_field(tab, "second", "Second image", 1)
        tab.place_button()
    tab.place_status()
    tab.place_results()
    tab.connect()


def edit_tab(page: Page) -> None:
    tab = Tab(page, "Edit", editing.change, recipes.change)
    with gr.Row(elem_classes="bar"):
        image_field(tab, "image", "Image", 0)
        with gr.Column(min_width=240):
            for name, label, number, help_line in (
                ("before", "Before", 0, "The image as it is."),
                ("after", "After", 1, "The image as it is to become."),
            ):
                tab.submits.append(caption_field(tab, name, label, help_line).submit)
                tab.fields[name].default = partial(example_change, number=number)
        tab.place_button()
    tab.place_status()
    tab.place_results()
    tab.connect()


def mix_tab(page: Page) -> None:
    tab = Tab(page, "Mix", editing.mix, recipes.mix)
    with gr.Row(elem_classes="bar"):
        for i, weight in enumerate((0.5, 0.5, 0)):
            with gr.Column(min_width=200):
                prompt = caption_field(tab, f"prompt_{i + 1}", f"Prompt {i + 1}", "May stay empty." if i == 2 else None)
                tab.submits.append(prompt.submit)
                share(tab, f"weight_{i + 1}", f"Weight {i + 1}", weight, "Only the shares of the sum count.")
                if i < 2:
                    page_default(tab, f"prompt_{i + 1}", i)
        tab.place_button()
    tab.place_status()
    with beside_results(tab):
        number_and_seed(tab, 8)
        more_settings(tab)
    tab.connect()


def inpaint_tab(page: Page) -> None:
    tab = Tab(page, "Inpaint", editing.inpaint, recipes.inpaint)
    with gr.Row(elem_classes="bar"):
        caption = caption_field(tab, "caption", "Caption", "The whole image as it is to become.")
        tab.submits.append(caption.submit)
        tab.fields["caption"].default = partial(example_change, number=1)
        tab.place_button()
    tab.place_status()
    with gr.Row(elem_classes="painting"):
        with gr.Column(scale=3, min_width=300):
            image = image_field(tab, "image", "Image", 0)
            canvas = html()
            strokes = gr.Textbox(visible=False, label="Brush strokes")
            tab.add("strokes", strokes, partial(read_text, longest=editing.LONGEST_STROKES), lambda opened: "")
            part = gr.Radio(list(editing.PARTS), value="the lower half", label="Without brush strokes, paint")
            tab.add("part", part, partial(read_choice, choices=tuple(editing.PARTS)))
        with gr.Column(scale=5, min_width=300):
            tab.place_results()
        with gr.Column(scale=2, min_width=220):
            number_and_seed(tab, 4)
    tab.connect()

    def show_canvas(name: str, file: PickedFile, strokes: Any) -> tuple[str, str]:
        """A canvas, with the strokes of a link; another image begins without any."""
        return editing.canvas(page.shelf.open(name), file, tab.fields["strokes"].read(strokes)), ""

    shown = image.change(show_canvas, [page.chosen, image, strokes], [canvas, strokes], **QUIET)
    shown.then(None, js="() => unclip.prepareBrush()", **QUIET)


def look_inside_tab(page: Page) -> None:
    tab = Tab(page, "Look inside", drawing.look_inside, recipes.look_inside)
    with gr.Row(elem_classes="bar"):
        caption = caption_field(tab, "caption", "Caption")
        tab.submits.append(caption.submit)
        page_default(tab, "caption", 0)
        tab.place_button()
    tab.place_status()
    with gr.Row():
        with gr.Column(scale=3):
            tab.place_results()
        with gr.Column(scale=1, min_width=260):
            seed_field(tab)
            image_field(tab, "image", "Real image (optional)", None)
    tab.connect()


def caption_field(tab: Tab, name: str, label: str, help_line: str | None = None, longest: int = LONGEST) -> gr.Textbox:
    is_long = longest > LONGEST
    if is_long:
        help_line = "Enter draws; Shift+Enter begins another line."
    text = gr.Textbox(
        label=label, info=help_line, max_length=longest, lines=1, max_lines=6 if is_long else 1, scale=5, min_width=180
    )
    if is_long:
        tab.submits.append(text.submit)
    return tab.add(name, text, partial(read_text, longest=longest), is_caption=True)


def page_default(tab: Tab, name: str, number: int) -> None:
    """Fill a field with one of the pipeline's example captions, which repeat from the start."""
    tab.fields[name].default = lambda opened: opened.examples.captions[number % len(opened.examples.captions)]


def example_change(opened: OpenPipeline, number: int) -> str:
    """The caption before an edit, or after it."""
    return opened.examples.change[number]


def number_and_seed(tab: Tab, number: int) -> None:
    with gr.Row():
        count = gr.Number(number, label="Pictures", info=f"Of each: 1 to {MOST_PICTURES}.", min_width=90)
        tab.add("n", count, partial(read_number, low=1, high=MOST_PICTURES, is_whole=True))
        tab.submits.append(count.submit)
    seed_field(tab)


def seed_field(tab: Tab) -> None:
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(0, label="Seed", info="Picture i has seed + i; the same seed draws the same.", min_width=120)
        tab.add("seed", seed, read_seed)
        tab.submits.append(seed.submit)
    with gr.Row(elem_classes="seed"):
        tab.lock = gr.Checkbox(True, label="Lock seed", min_width=100)
        tab.lock.preprocess = lambda value: value
        random = gr.Button("Random", size="sm", min_width=80)
    random.click(lambda: secrets.randbelow(2**31), None, seed, queue=False, **QUIET)


def share(tab: Tab, name: str, label: str, value: float, help_line: str) -> None:
    slider = gr.Slider(0, 1, value, step=0.05, label=label, info=help_line, min_width=120, buttons=[])
    tab.add(name, slider, partial(read_number, low=0, high=1))


def more_settings(tab: Tab) -> None:
    """Settings of the decoder. Any that is given draws with the many-step decoder, even if there is a fast one."""
    with gr.Accordion("More", open=False):
        for name, label, low, high, is_whole, help_line in (
            ("steps", "Steps", 1, 100, True, "Steps of the decoder"),
            ("guidance", "Guidance", 0, 10, False, "1 is none; more follows the caption closer"),
            ("num_candidates", "Candidates", 1, 16, True, "Drawn for each picture; the best is kept"),
        ):
            info = f"{help_line}: {low} to {high}. Empty: {OWN}."
            number = gr.Textbox(label=label, info=info, max_lines=1)  # gradio puts 0 into an empty Number
            tab.add(name, number, partial(read_optional_number, low=low, high=high, is_whole=is_whole))
            tab.submits.append(number.submit)
        sampler = gr.Dropdown(list(SAMPLERS), value=OWN, label="Sampler", info="How the decoder takes its steps.")
        tab.add("sampler", sampler, partial(read_setting, choices=SAMPLERS))
        style = gr.Dropdown(list(STYLES), value="clear", label="Style", info="Faithful is as varied as the data.")
        tab.add("style", style, partial(read_setting, choices=STYLES))
        upscale = gr.Checkbox(True, label="Large pictures", info="Enlarge them with the pipeline's upsampler.")
        tab.add("upscale", upscale, read_upscale, has_upsampler)


def read_setting(value: Any, label: str, choices: tuple[str, ...]) -> str | None:
    """One of some choices; the first is the pipeline's own, which needs no setting."""
    choice = read_choice(value, label, choices)
    return None if choice == choices[0] else choice


def read_upscale(value: Any, label: str) -> str | None:
    return None if read_switch(value, label) else "none"


def has_upsampler(opened: OpenPipeline) -> gr.Checkbox:
    return gr.Checkbox(value=True, visible="upsampler" in opened.pipe.parts)


def image_field(tab: Tab, name: str, label: str, number: int | None) -> gr.Image:
    """An image to drop, paste or choose, beside the examples. At first it holds the example of this number, if any."""
    page = tab.page
    with gr.Column(min_width=240, elem_classes="image-field"):
        image = gr.Image(label=label, image_mode=None, sources=["upload", "clipboard"], height=150, buttons=[])
        image.preprocess = lambda data: data and data.path  # opened by the answer, which can report a problem

        def example(opened: OpenPipeline) -> str | None:
            images = opened.example_images
            return None if number is None else page.store_example(images[number % len(images)])

        tab.add(name, image, read_file, example)
        chips(tab, image, "Examples", lambda opened: opened.example_images, example_chip)
    return image


def example_chip(example: Image.Image, number: int, opened: OpenPipeline) -> str:
    return markup.chip(example, alt=f"Example {number + 1}")


def caption_chip(caption: str, number: int, opened: OpenPipeline) -> str:
    return markup.chip(opened.drawn_examples[number], caption)


def chips(
    tab: Tab,
    target: Any,
    label: str,
    examples: Callable[[OpenPipeline], Sequence[Any]],
    make: Callable[[Any, int, OpenPipeline], str],
) -> None:
    """Buttons with small pictures; a click puts an example into a field, and asks for the answer."""
    page = tab.page
    samples = gr.Dataset(
        components=[gr.HTML(visible=False)], samples=[], type="index", label=label, samples_per_page=24,
        elem_classes="chips",
    )  # fmt: skip

    def show(opened: OpenPipeline) -> gr.Dataset:
        return gr.Dataset(samples=[[make(example, i, opened)] for i, example in enumerate(examples(opened))])

    def put(name: str, number: Any) -> Any:
        choice = examples(page.shelf.open(name))
        if type(number) is not int or not 0 <= number < len(choice):
            raise UserError(f"there is no example of number {shown(number)}; load the page again")
        example = choice[number]
        return page.store_example(example) if isinstance(example, Image.Image) else example

    page.follow(samples, show)
    clicked = samples.click(put, [page.chosen, samples], target, **QUIET)
    clicked.success(None, js=f"() => unclip.go('{tab.slug}')", **QUIET)


TABS: dict[str, tuple[Callable[[Page], None], str]] = {
    "Draw": (draw_tab, "Write captions, and see them drawn."),
    "Vary": (vary_tab, "Draw an image again: its meaning to CLIP stays, all else changes."),
    "Blend": (blend_tab, "Go from one image to another; the slider shows each moment."),
    "Edit": (edit_tab, "Move an image from one caption towards another; the slider says how far."),
    "Mix": (mix_tab, "Draw what lies between two or three prompts."),
    "Inpaint": (inpaint_tab, "Brush over a part of an image, or name it; it is painted anew to fit a caption."),
    "Look inside": (look_inside_tab, "See what the prior makes of a caption, and what the decoder needs it for."),
}
"""Name -> what places the tab, and a line of help."""

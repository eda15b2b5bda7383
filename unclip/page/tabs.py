"""Lay out the page: one function per tab, which places inputs and connects buttons to their answers."""

import io
import os
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from unclip.errors import UserError
from unclip.page import answers
from unclip.page.doors import LARGEST_UPLOAD, Doors, Gate, is_loopback
from unclip.page.line import Line
from unclip.page.markup import CSS, problem
from unclip.page.pictures import PickedFile, is_within, store
from unclip.page.shelf import OpenPipeline, Shelf
from unclip.page.values import LONGEST, read_number, read_seed, read_text
from unclip.store.hub import is_hub_name

PRIVATE = {"api_visibility": "private"}
"""Hides the page's functions from gradio's API."""
QUIET = {"show_progress": "hidden", **PRIVATE}
SLIDING = {"queue": False, "trigger_mode": "always_last", **QUIET}
DRAWING = {"concurrency_id": "drawing", "concurrency_limit": 2, **PRIVATE}
"""All buttons share two places at work."""
SESSIONS = 100
"""Visitors whose state is kept: gradio keeps some hundred kilobytes of each, which it never releases by itself."""
KEPT_STROKES = 20
"""Visitors whose strokes of the brush are kept until they press the button."""


class Page:
    """State that the tabs share while the page is built: the chosen pipeline, and the components that depend on it."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        self.chosen = gr.Dropdown(shelf.names, value=shelf.names[0], label="Pipeline", filterable=False)
        self.chosen.preprocess = partial(read_text, label="Pipeline")
        self.followers: list[tuple[Any, Callable[[OpenPipeline], Any]]] = []

    def follow(self, component, value: Callable[[OpenPipeline], Any]):
        """Let the chosen pipeline set a component's value: when the page is opened, and at each choice. Returns it."""
        self.followers.append((component, value))
        return component

    def fill(self, name: str) -> list[Any]:
        """The values of all components that follow the choice, for the pipeline of this name."""
        opened = self.shelf.open(name)
        return [value(opened) for _, value in self.followers]

    def answer(
        self, button: gr.Button, work: Callable[..., answers.Shown], inputs: Sequence, outputs: Sequence
    ) -> None:
        """Let `work(opened, *inputs)` answer a button. One line above the outputs reports a problem with the inputs."""
        call = partial(answer_or_problem, self.shelf, work, len(outputs))
        button.click(
            call,
            [self.chosen, *inputs],
            [gr.HTML(apply_default_css=False), *outputs],
            show_progress="minimal",
            **DRAWING,
        )


def answer_or_problem(shelf: Shelf, work: Callable[..., answers.Shown], outputs: int, name: str, *values):
    """Yield an empty line and the outputs of `work`; or, for values that cannot be used, a line that says why.

    In the second case the outputs stay as they are.
    """
    try:
        for shown in work(shelf.open(name), *values):
            yield "", *shown
    except UserError as error:
        yield problem(str(error)), *[gr.skip()] * outputs


class Blocks(gr.Blocks):
    """gradio's page, on which everything that goes wrong becomes one line."""

    async def preprocess_data(self, block_fn, inputs, *arguments, **options):
        try:
            if not all(path is None or is_within(path, upload_folder()) for path in paths_in(inputs)):
                raise UserError("a file is not among those that were uploaded here; drop it on the page again")
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except Exception as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            if isinstance(error, (UserError, gr.Error)):
                raise
            raise UserError("this function of the page takes other values; load the page again") from None

    async def process_api(self, *arguments, **options):
        try:
            return await super().process_api(*arguments, **options)
        except UserError as error:
            raise in_one_line(str(error)) from None
        except gr.Error:
            raise
        except Exception as error:
            line = f"the page failed ({type(error).__name__}); its terminal says why"
            raise gr.Error(line, duration=None) from error


def in_one_line(message: str) -> gr.Error:
    """What shows a message on the page, without a traceback in the terminal."""
    return gr.Error(escape(" ".join(message.split())), duration=None, print_exception=False)


def paths_in(value: Any) -> Iterator[Any]:
    """All files that a visitor's values name, wherever gradio would look for them."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from paths_in(item)


def upload_folder() -> str:
    """The folder of what visitors upload and are shown."""
    return os.environ["GRADIO_TEMP_DIR"]


def serve(shelf: Shelf, host: str, port: int, show: bool) -> None:
    """Serve the page until it is interrupted. Raises UserError if the port is in use."""
    page, address = launch(shelf, host, port, show)
    if not is_loopback(host):
        print(f"It is open to every machine that reaches {host}; only who has the token gets in.")
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    page.block_thread()


def launch(shelf: Shelf, host: str, port: int, show: bool = False) -> tuple[gr.Blocks, str]:
    """Start to serve the page, and return it and its address. Raises UserError if the port is in use."""
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    page = build(shelf)
    gate = Gate(host, upload_folder(), set(page.fns), Line(page._queue), partial(kept_files, page))
    warnings.showwarning = show_warning  # type: ignore[assignment]
    warnings.filterwarnings("always", category=UserWarning, module="unclip")
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, theme=theme, css=CSS,
            footer_links=[], run_history=False, enable_monitoring=False, share=False, quiet=True, inline=False,
            ssr_mode=False, mcp_server=False, pwa=False, max_file_size=LARGEST_UPLOAD, state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(Doors, gate=gate)]}, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port {port} at {host} cannot be used; choose another with --port ({error})") from error
    gate.launching = False
    address = f"{address}?token={gate.token}" if gate.token else address
    if show:
        webbrowser.open(address)
    return page, address


def kept_files(page: gr.Blocks) -> set[str]:
    """The files of the examples."""
    return {file for block in page.blocks.values() for file in block.keep_in_cache}


def show_warning(message: Warning | str, category: type, filename: str, *_) -> None:
    """Show warnings of this library, such as that a caption is cut, to the visitor whom they concern."""
    if category is UserWarning and Path(__file__).parents[1] in Path(filename).parents:
        gr.Warning(escape(str(message)))
    else:
        print(f"warning: {message}")


def build(shelf: Shelf) -> gr.Blocks:
    with Blocks(title="unclip", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as blocks:
        gr.Markdown("# unclip\nDraw images from captions, and edit images through their CLIP embeddings.")
        page = Page(shelf)
        for name, tab in TABS.items():
            with gr.Tab(name), gr.Row():
                tab(page)
        components = [component for component, _ in page.followers]
        gr.on([blocks.load, page.chosen.change], page.fill, page.chosen, components, **QUIET)
    return blocks.queue(default_concurrency_limit=2, api_open=False)


def draw_tab(page: Page) -> None:
    with gr.Column(scale=2):
        text = textbox("Captions, one per line", lines=4, max_length=answers.LONGEST_TEXT)
        page.follow(text, lambda opened: "\n".join(opened.examples.captions[:3]))
        samples = gr.Dataset(components=[gr.Textbox(visible=False)], samples=[], label="Click to add a caption")
        page.follow(samples, lambda opened: gr.Dataset(samples=[[caption] for caption in opened.examples.captions]))
        number, seed = number_and_seed(4)
        with gr.Row():
            guidance = slider(0, 10, step=0.1, label="Guidance")
            steps = slider(1, 100, step=1, label="Steps")
        page.follow(guidance, lambda opened: opened.pipe.sampling.decoder.guidance)
        page.follow(steps, lambda opened: opened.pipe.sampling.decoder.steps)
        button = gr.Button("Draw", variant="primary")
    settings = [text, number, seed, guidance, steps]
    with gr.Column(scale=3, elem_classes="results"):
        page.answer(button, answers.draw, settings, [result()])
        command = gr.Textbox(label="The same as a command", buttons=["copy"], interactive=False)

    def show_command(name: str, *values) -> str:
        checkpoint = name if is_hub_name(name) else str(page.shelf.open(name).folder)
        return answers.sample_command(checkpoint, *values)

    samples.click(lambda text, sample: f"{text.rstrip()}\n{sample[0]}".lstrip(), [text, samples], text, **QUIET)
    gr.on([c.change for c in (page.chosen, *settings)], show_command, [page.chosen, *settings], command, **SLIDING)


def vary_tab(page: Page) -> None:
    with gr.Column(scale=2):
        image = image_input(page, "Image", 0)
        number, seed = number_and_seed(8)
        keep = slider(0, 1, 0, step=0.05, label="Keep", info="0: all noise is new; towards 1: the image's own")
        button = gr.Button("Vary", variant="primary")
    with gr.Column(scale=3, elem_classes="results"):
        page.answer(button, answers.vary, [image, number, seed, keep], [result()])


def blend_tab(page: Page) -> None:
    with gr.Column(scale=2):
        with gr.Row():
            images = [image_input(page, "First image", 0), image_input(page, "Second image", 1)]
        button = gr.Button("Blend", variant="primary")
    with gr.Column(scale=3, elem_classes="results"):
        frames_with_slider(page, button, answers.blend, images, "Position", 1)


def edit_tab(page: Page) -> None:
    with gr.Column(scale=2):
        image = image_input(page, "Image", 0)
        before = page.follow(textbox("Before"), lambda opened: opened.examples.change[0])
        after = page.follow(textbox("After"), lambda opened: opened.examples.change[1])
        button = gr.Button("Edit", variant="primary")
    with gr.Column(scale=3, elem_classes="results"):
        frames_with_slider(page, button, answers.change, [image, before, after], "Amount", answers.FURTHEST)


def mix_tab(page: Page) -> None:
    with gr.Column(scale=2):
        prompts = []
        for i, weight in enumerate((0.5, 0.5, 0)):
            with gr.Row():
                text = textbox(f"Prompt {i + 1}", scale=2)
                prompts += [text, slider(0, 1, weight, step=0.05, label=f"Weight {i + 1}", min_width=120)]
            if i < 2:  # the third may stay empty
                page.follow(text, partial(example_caption, number=i))
        number, seed = number_and_seed(8)
        button = gr.Button("Mix", variant="primary")
    with gr.Column(scale=3, elem_classes="results"):
        page.answer(button, answers.mix, [number, seed, *prompts], [result()])


def example_caption(opened: OpenPipeline, number: int) -> str:
    """One of the pipeline's example captions, which repeat from the start."""
    captions = opened.examples.captions
    return captions[number % len(captions)]


def inpaint_tab(page: Page) -> None:
    with gr.Column(scale=2):
        image = image_input(page, "Image", 0)
        painting = gr.ImageEditor(
            label="Brush over the part to paint", format="png", sources=(), layers=False, transforms=(),
            brush=gr.Brush(default_size=40, colors=["#ff5a36"], color_mode="fixed"), buttons=[],
            canvas_size=(answers.SIDE, answers.SIDE),
        )  # fmt: skip
        keep_strokes(painting)
        part = gr.Radio(list(answers.PARTS), value="the lower half", label="Without brush strokes, paint")
        part.preprocess = partial(read_text, label="The part to paint")
        caption = page.follow(textbox("Caption"), lambda opened: opened.examples.change[0])
        number, seed = number_and_seed(4)
        button = gr.Button("Inpaint", variant="primary")
    with gr.Column(scale=3, elem_classes="results"):
        page.answer(button, answers.inpaint, [image, painting, part, caption, number, seed], [result()])

    def show_canvas(name: str, file: PickedFile) -> str | None:
        canvas = answers.draw_canvas(page.shelf.open(name), file)
        return store(canvas, upload_folder()) if canvas else None

    image.change(show_canvas, [page.chosen, image], painting, **QUIET)


def keep_strokes(painting: gr.ImageEditor) -> None:
    """Let the editor pass on the layer of the brush, and nothing else.

    The browser sends it to `accept_blobs`, and then its name with the click. gradio's own function stores whatever is
    sent, for ever.
    """
    strokes: dict[str, bytes] = {}

    def accept_blobs(blobs) -> None:
        if blobs.data["type"] == "layer":
            _, strokes[blobs.data["id"][:64]] = blobs.files[0]
        while len(strokes) > KEPT_STROKES:
            del strokes[next(iter(strokes))]

    def read_strokes(data) -> io.BytesIO | str | None:
        if data is None:
            return None
        if data.id is not None:
            content = strokes.pop(data.id, None)
            return io.BytesIO(content) if content else None
        return data.layers[0].path if data.layers else None

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    painting.accept_blobs = accept_blobs
    painting.preprocess = read_strokes


def look_inside_tab(page: Page) -> None:
    with gr.Column(scale=2):
        caption = page.follow(textbox("Caption"), lambda opened: opened.examples.captions[0])
        seed = seed_input()
        image = image_input(page, "An image of it, for its true embedding (optional)", None)
        button = gr.Button("Look inside", variant="primary")
    with gr.Column(scale=3, elem_classes="results"):
        page.answer(button, answers.look_inside, [caption, seed, image], [result()])


def image_input(page: Page, label: str, number: int | None) -> gr.Image:
    """An image to drop, paste or choose, above the examples. At first it holds the example of this number, if any."""
    with gr.Column():
        image = gr.Image(label=label, image_mode=None, sources=["upload", "clipboard"], height=220, buttons=[])
        image.preprocess = lambda data: data and data.path  # opened by the answer, which can report a problem
        samples = gr.Dataset(components=[gr.Image(visible=False)], samples=[], label="Examples")
    page.follow(image, lambda opened: example_image(opened, number))
    page.follow(samples, lambda opened: gr.Dataset(samples=[[file] for file in example_files(opened)]))
    samples.click(lambda sample: sample[0], samples, image, **QUIET)
    return image


def example_image(opened: OpenPipeline, number: int | None) -> str | None:
    files = example_files(opened)
    return files[number % len(files)] if files and number is not None else None


def example_files(opened: OpenPipeline) -> list[str]:
    """Files of the example images, as they were decoded."""
    return [store(image, upload_folder()) for image in opened.examples.images]


def textbox(label: str, max_length: int = LONGEST, **options) -> gr.Textbox:
    component = gr.Textbox(label=label, max_length=max_length, **options)
    component.preprocess = partial(read_text, label=label, longest=max_length)
    return component


def slider(minimum: float, maximum: float, *arguments, label: str, step: float, **options) -> gr.Slider:
    """A slider that accepts an empty box or a number out of range, as happens while a visitor types."""
    component = gr.Slider(minimum, maximum, *arguments, label=label, step=step, **options)
    component.preprocess = partial(read_number, label=label, low=minimum, high=maximum, is_whole=step == 1)
    return component


def number_and_seed(number: int) -> tuple[gr.Slider, gr.Number]:
    with gr.Row():
        return slider(1, 16, number, step=1, label="Pictures"), seed_input()


def seed_input() -> gr.Number:
    component = gr.Number(0, label="Seed", precision=0)
    component.preprocess = read_seed
    return component


def result() -> gr.HTML:
    return gr.HTML(min_height=120, apply_default_css=False)


def frames_with_slider(page: Page, button: gr.Button, work: Callable, inputs: Sequence, label: str, end: float) -> None:
    """Show the frames that a button computes, kept for this visitor, and enlarge the one that a slider picks."""
    frames = gr.State(time_to_live=3600)
    position = slider(0, end, end / 2, step=end / (answers.FRAMES - 1), label=label)
    large = result()
    page.answer(button, work, [*inputs, position], [frames, large, result()])
    position.change(partial(answers.frame_at, end=end), [frames, position], large, **SLIDING)


TABS = {
    "Draw": draw_tab,
    "Vary": vary_tab,
    "Blend": blend_tab,
    "Edit": edit_tab,
    "Mix": mix_tab,
    "Inpaint": inpaint_tab,
    "Look inside": look_inside_tab,
}

"""Serve the page: gradio's server behind the doors, with one line for everything that goes wrong."""

import os
import warnings
import webbrowser
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from unclip.errors import UserError
from unclip.page.doors import LARGEST_UPLOAD, Doors, Gate, is_loopback
from unclip.page.layout import Page, html
from unclip.page.line import Line
from unclip.page.pictures import is_within
from unclip.page.shelf import Shelf
from unclip.page.tabs import TABS
from unclip.page.toolbar import place_history, place_toolbar

SESSIONS = 100
"""Visitors whose state is kept: gradio keeps some hundred kilobytes of each, which it never releases by itself."""
HERE = Path(__file__).parent
COLOURS = {
    "body_text_color_subdued": "#4b5563",
    "body_text_color_subdued_dark": "#d1d5db",
    "block_info_text_color": "#4b5563",
    "block_info_text_color_dark": "#d1d5db",
    "block_label_text_color": "#374151",
    "block_label_text_color_dark": "#e5e7eb",
    "block_title_text_color": "#374151",
    "block_title_text_color_dark": "#e5e7eb",
    "button_primary_background_fill": "#c2410c",
    "button_primary_background_fill_dark": "#c2410c",
    "button_primary_background_fill_hover": "#9a3412",
    "button_primary_background_fill_hover_dark": "#9a3412",
    "button_cancel_background_fill": "#b91c1c",
    "button_cancel_background_fill_dark": "#b91c1c",
    "button_cancel_text_color": "#ffffff",
    "layout_gap": "10px",
}
"""Colours with enough contrast: those of gradio's theme have too little."""


class Blocks(gr.Blocks):
    """gradio's page, on which everything that goes wrong becomes one line."""

    async def preprocess_data(self, block_fn, inputs, state, *arguments, **options):
        for block in block_fn.inputs:
            if state is not None and block._id in state:  # for a visitor gradio makes some components anew
                state[block._id].preprocess = block.preprocess
        try:
            if not all(path is None or is_within(path, upload_folder()) for path in paths_in(inputs)):
                raise UserError("a file is not among those that were uploaded here; drop it on the page again")
            return await super().preprocess_data(block_fn, inputs, state, *arguments, **options)
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
    """Return an error that shows a message on the page, without a traceback in the terminal."""
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
    blocks, address = launch(shelf, host, port, show)
    if not is_loopback(host):
        print(f"It is open to every machine that reaches {host}; only who has the token gets in.")
    print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
    blocks.block_thread()


def launch(shelf: Shelf, host: str, port: int, show: bool = False) -> tuple[gr.Blocks, str]:
    """Start to serve the page, and return it and its address. Raises UserError if the port is in use."""
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")).set(**COLOURS)
    blocks, page = build(shelf)
    gate = Gate(host, upload_folder(), set(blocks.fns), Line(blocks._queue), lambda: page.kept)
    scripts = "".join(f"<script>{(HERE / name).read_text()}</script>" for name in ("page.js", "brush.js"))
    warnings.showwarning = show_warning  # type: ignore[assignment]
    warnings.filterwarnings("always", category=UserWarning, module="unclip")
    try:
        _, address, _ = blocks.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, theme=theme,
            css=(HERE / "page.css").read_text(), head=scripts,
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
    return blocks, address


def show_warning(message: Warning | str, category: type, filename: str, *_) -> None:
    """Show warnings of this library, such as that a caption is cut, to the visitor whom they concern."""
    if category is UserWarning and Path(__file__).parents[1] in Path(filename).parents:
        gr.Warning(escape(str(message)))
    else:
        print(f"warning: {message}")


def build(shelf: Shelf) -> tuple[gr.Blocks, Page]:
    with Blocks(title="unclip", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as blocks:
        page = Page(shelf, upload_folder())
        with gr.Row(elem_id="top"):
            html("<h1>unclip</h1>")
            page.choose()
        with gr.Tabs(elem_id="tabs") as tabs:
            for name, (place, help_line) in TABS.items():
                slug = name.lower().replace(" ", "-")
                with gr.Tab(name, id=slug, elem_id=f"tab-{slug}", elem_classes="tab") as tab:
                    html(f'<p class="help">{help_line}</p>')
                    place(page)
                tab.select(None, js="() => unclip.start()", show_progress="hidden", api_visibility="private")
        place_history()
        place_toolbar(page, tabs)
        page.connect(blocks, tabs)
        for function in blocks.fns.values():
            function.show_progress_on = [page.query]  # at each event gradio reads these, else all outputs
    return blocks.queue(default_concurrency_limit=8, api_open=False), page

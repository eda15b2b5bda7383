"""The bar at the foot of the page, which saves the picked picture or sends it to another tab, and this visit's history.

page.js knows which picture is picked, saves files, and keeps the history in the browser; no server sees it.
"""

import base64
import binascii
import io
from typing import Any

import gradio as gr

from unclip.errors import UserError
from unclip.page.layout import QUIET, SKIP, Page, html
from unclip.page.pictures import open_picked, store
from unclip.page.values import read_text

PREFIX = "data:image/png;base64,"
LARGEST = 400_000
"""Letters of a picture that is sent to another tab; page.js makes larger ones smaller."""
TARGETS = {"vary": None, "blend": None, "edit": "before", "inpaint": "caption"}
"""Tabs that take a picture, and their field that takes its caption."""
SAVING = """
<div class="unclip"><span id="picked" aria-live="polite">no picture yet</span>
<label>Size <select id="size"><option value="1">as drawn</option><option value="4">4 times</option>
<option value="8">8 times</option><option value="16">16 times</option></select></label>
<button type="button" id="save">Save PNG</button> <button type="button" id="zip">Save all (ZIP)</button></div>
"""
HISTORY = """
<section class="unclip" id="history" aria-label="This visit" hidden><h2>This visit</h2>
<div class="past"></div></section>
"""


def place_history() -> None:
    html(HISTORY)


def place_toolbar(page: Page, tabs: gr.Tabs) -> None:
    sent = gr.Textbox(visible=False, label="Sent picture")
    caption = gr.Textbox(visible=False, label="Its caption")
    for text in (sent, caption):
        text.preprocess = lambda value: value
    with gr.Row(elem_id="toolbar"):
        html(SAVING)
        for slug, captioned in TARGETS.items():
            tab = page.tabs[slug]
            button = gr.Button(f"Send to {tab.name}", size="sm", min_width=90)
            outputs = [tabs, tab.fields["image"].component]
            outputs += [tab.fields[captioned].component] if captioned else []

            def send(source: Any, caption: Any, slug: str = slug, is_captioned: bool = bool(captioned)) -> list[Any]:
                image = store(open_picked(io.BytesIO(read_picture(source))), page.folder)
                text = read_text(caption, "Caption")
                return [gr.Tabs(selected=slug), image, *([text or SKIP] if is_captioned else [])]

            event = button.click(send, [sent, caption], outputs, js="() => unclip.picked()", **QUIET)
            event.success(None, js=f"() => unclip.go('{slug}')", **QUIET)


def read_picture(source: Any) -> bytes:
    """The PNG that a data URL holds. Raises UserError for any other value."""
    text = read_text(source, "A picture", LARGEST)
    if not text.startswith(PREFIX):
        raise UserError("no picture is picked; draw one first")
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("this is no picture; pick one on the page") from error

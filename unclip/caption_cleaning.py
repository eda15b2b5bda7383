"""How the tokenizers of pretrained CLIPs clean captions. Needs no torch."""

import html
import re
from typing import Literal

from unclip.errors import UserError

Cleaning = Literal["", "whitespace", "lower"]
"""How a caption is cleaned before it is tokenised: not at all; by `clean_caption`; or by it, and then lower-cased."""
UNCHANGED_BY_FTFY = re.compile(r"[ -%'-~\t\r\n]*")
"""Text that ftfy cannot change after HTML is unescaped and white space is normalised: ASCII without "&"."""


def clean_caption(caption: str, cleaning: Cleaning) -> str:
    """Clean a caption as open_clip and OpenAI do.

    ftfy mends broken encodings and straightens quotes, HTML is unescaped twice, and runs of white space become one
    space. Raises UserError if ftfy is not installed and might change the caption.
    """
    try:
        import ftfy  # only open_clip's and OpenAI's tokenizers need it
    except ImportError as error:
        if not UNCHANGED_BY_FTFY.fullmatch(caption):
            raise UserError(f"caption {caption!r} is cleaned with ftfy for this CLIP; pip install ftfy") from error
    else:
        caption = ftfy.fix_text(caption)
    caption = " ".join(html.unescape(html.unescape(caption)).split())
    return caption.lower() if cleaning == "lower" else caption

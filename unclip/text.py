"""Text files of unknown encoding."""

import codecs
import re

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
"""Control characters, which text does not contain."""
SURROGATES = re.compile(r"[\ud800-\udfff]")
"""Halves of a pair, or bytes that could not be decoded: no Unicode."""
BYTE_ORDER_MARKS = {  # that of UTF-32 before that of UTF-16, with which it begins
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_text(text: str) -> bool:
    """Whether decoded text is Unicode without control characters."""
    return not (CONTROL.search(text) or SURROGATES.search(text))


def decode_lines(content: bytes) -> tuple[list[str], bool]:
    """Decode text into lines: UTF-8, UTF-16 or UTF-32 with a byte order mark, else Windows-1252 line by line.

    Returns the lines, and whether Windows-1252 was assumed for some. Bytes that are not text at all become control
    characters or lone surrogates. Raises UnicodeDecodeError for broken UTF-16 and UTF-32.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            content = content.decode(encoding).encode()
            break
    may_be_text = not CONTROL.search(content.decode("latin-1"))
    lines = []
    has_windows_lines = False
    for line in re.split(rb"\r\n|\r|\n", content.removeprefix(codecs.BOM_UTF8)):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            has_windows_lines |= may_be_text
            lines.append(line.decode("cp1252" if may_be_text else "utf-8", "surrogateescape"))
    return lines, has_windows_lines


def decode_text(content: bytes) -> str:
    """The same as one text."""
    return "\n".join(decode_lines(content)[0])

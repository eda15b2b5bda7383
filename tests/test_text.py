"""Text files of any encoding, and lines that a terminal can print."""

import pytest

from unclip.cli.run import explain
from unclip.cli.sample import SampleOptions, read_captions
from unclip.errors import UserError, printable
from unclip.text import decode_lines, is_text

CAPTIONS = ["a café", "two “quotes”…", "three €"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_lines_of_every_encoding(encoding, ending):
    lines, has_windows_lines = decode_lines(ending.join(CAPTIONS).encode(encoding))
    assert lines == CAPTIONS
    assert has_windows_lines == (encoding == "cp1252")


def test_lines_of_two_encodings_in_one_file():
    assert decode_lines("é\n".encode() + "é".encode("cp1252")) == (["é", "é"], True)


@pytest.mark.parametrize("content", [b"\x89PNG\0\xff", b"a\0b", b"\xe9\x81", b"\x1b[31m"])
def test_bytes_that_are_no_text_are_known(content):
    assert not all(map(is_text, decode_lines(content)[0]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_captions_for_sampling_are_read_in_every_encoding(encoding, tmp_path, capsys):
    (tmp_path / "captions.txt").write_bytes("\n".join(CAPTIONS).encode(encoding))
    assert read_captions(SampleOptions(captions_file=tmp_path / "captions.txt")) == CAPTIONS
    assert ("read as Windows-1252" in capsys.readouterr().err) == (encoding == "cp1252")


@pytest.mark.parametrize("sign", ["\x1b", "\n", "\r", "\x07", "\x9b", "\u2028", "\u202e", "\udce9", "\0"])
def test_no_name_of_a_stranger_commands_the_terminal_or_breaks_a_line(sign):
    text = f"a{sign}[2Jb"
    for line in (printable(text), str(UserError(text)), explain(OSError(2, "No such file", text))):
        assert sign not in line
        assert "[2Jb" in line
    assert printable("a café 🧑\u200d🚀") == "a café 🧑\u200d🚀"

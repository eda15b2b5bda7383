"""Standard streams that are closed, full or lack letters stop no program."""

import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import sys, warnings
from unclip.cli.run import run

def main(argv):
    from tqdm import tqdm
    captions = sys.stdin.buffer.read().decode() or "none"
    print(f"drawing {captions}", flush=True)
    warnings.warn("a long caption \\u65e5 \\udcff")
    for _ in tqdm(range(2), leave=False, disable=None):
        print("\\u65e5 \\udcff")
    with open(argv[0], "x", encoding="utf-8") as file:
        file.write(captions)
    return 0

run(main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    "redirection", ["", ">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "1</dev/null"]
)
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_a_program_does_its_work_whatever_its_streams_are(redirection, encoding, tmp_path):
    command = f'exec "$0" -c "$1" "$2" {redirection}'
    words = ["sh", "-c", command, sys.executable, PROGRAM, str(tmp_path / "picture")]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(words, input=b"a bag", capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture").read_text() == ("none" if "<&-" in redirection else "a bag")
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"\\udcff" in done.stderr or "2>" in redirection


def test_a_program_in_the_c_locale_draws_too(tmp_path):
    words = [sys.executable, "-c", PROGRAM, tmp_path / "picture"]
    environment = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(words, input="日".encode(), capture_output=True, env=environment | {"PYTHONIOENCODING": ""})
    assert done.returncode == 0, done.stderr
    assert b"drawing \\u65e5" in done.stdout

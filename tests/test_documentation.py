"""The documentation: its commands parse, its paths, links and line counts are true, and the README is short."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

FOLDERS = ("unclip", "data", "stages", "configs", "tests", "checkpoints")
IGNORED = ("data/raw", "data/cache")
COMMITTED = (
    "checkpoints/README.md",
    *(f"checkpoints/{name}/README.md" for name in ("fashion-mnist", "emoji", "cifar10")),
)
SCRIPTS = ("train_clip.py", "train_prior.py", "train_decoder.py", "sample.py")
OUTSIDE = {"mkdir", "cp", "rm", "pip", "source", "echo", "cat", "cd", "git", "hf", "pytest", "tensorboard", "apt-get",
           "uvx"}  # fmt: skip
"""Commands that are not ours."""
NO_OPTIONS = {
    "tests/torture.py",
    "tests/web_speed.py",
    "tests/screenshot.py",
    "tests/pipelines/draw_pictures.py",
    "data.fashion_mnist",
    "unclip.lite.distribution",
}
"""Programs that parse no options."""
EXAMPLES = {"data/noise.py"}
"""Files that a document tells the reader to write."""
VARIABLES = {"DATA", "RUN", "QUICK", "PYTHON"}
"""Variables that the Makefile reads."""
PIPELINE_OPTIONS = ("--checkpoint", "--init-from", "--clip")
BARE = re.compile(r"python -m [\w.]+|unclip [a-z]+")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLACK = 10
"""Lines by which a count in the README may be off; it is rounded to tens."""


def documents() -> list[Path]:
    found = [ROOT / "README.md", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]
    names = [path.relative_to(ROOT).as_posix() for path in found]
    kept = [name for name in names if not name.startswith(IGNORED)]
    return [ROOT / name for name in kept if name in COMMITTED or not name.startswith("checkpoints/")]


def modules() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [*(ROOT / script for script in SCRIPTS), *sorted(found)]


DOCUMENTS = documents()
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


class Command(NamedTuple):
    place: str
    words: tuple[str, ...]


def shell_commands(script: str) -> list[tuple[str, ...]]:
    """The simple commands of shell lines: continued lines joined, comments, assignments and redirections left out."""
    commands = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("|;&<>") or not word:
                words.append(word)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                commands.append(tuple(words))
            words = []
    return commands


def is_command(line: str) -> bool:
    return (
        re.match(r"([A-Z_]+=\S* )*(\S+/)?(python (-m \w|\S+\.py)|unclip [a-z]|make [a-z]|torchrun )", line) is not None
    )


def shell_text(markdown: str) -> list[str]:
    """Shell blocks of Markdown, indented blocks of commands, and commands within sentences."""
    fenced = [body for language, body in FENCE.findall(markdown) if language in ("sh", "bash", "shell")]
    plain = [body for language, body in FENCE.findall(markdown) if not language and "──" not in body]
    plain = [body for body in plain if any(is_command(line) for line in body.splitlines())]
    rest = FENCE.sub("", markdown)
    indented = re.findall(r"(?:^    .+\n)+", rest, re.MULTILINE)
    inline = [span for span in re.findall(r"`([^`]+)`", rest.replace("\n", " ")) if is_command(span)]
    inline = [f"{span} --help" if BARE.fullmatch(span) else span for span in inline]  # a program that is only named
    return fenced + plain + [block for block in indented if is_command(block.strip())] + inline


def docstring_commands(path: Path) -> list[str]:
    """Lines of a module's docstring that show a command."""
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or "").splitlines()[1:]
    return [
        line.strip()
        for line in lines
        if is_command(line.strip()) and (line[:4].isspace() or line.startswith(("python ", "unclip ")))
    ]


def all_commands() -> list[Command]:
    found = []
    for path, name in zip(DOCUMENTS, NAMES, strict=True):
        for script in shell_text(path.read_text(encoding="utf-8")):
            found += [Command(name, words) for words in shell_commands(script)]
    for path in modules():
        for line in docstring_commands(path):
            found += [Command(path.relative_to(ROOT).as_posix(), words) for words in shell_commands(line)]
    return found


def program(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The program that a command runs, as "module", "file.py" or "unclip", and its arguments."""
    name = words[0].removeprefix(".venv/bin/")
    if name == "torchrun":
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return words[at], words[at + 1 :]
    if name in ("python", "python3"):
        at = 2 if words[1] == "-m" else 1
        return words[at], words[at + 1 :]
    return name, words[1:]


def parse_arguments(arguments: tuple[str, ...]) -> list[str]:
    """Arguments with pipelines that exist only in the example replaced by the committed one."""
    known = str(ROOT / "checkpoints" / "fashion-mnist")
    pairs = zip(("", *arguments), arguments, strict=False)
    return [known if option in PIPELINE_OPTIONS else word for option, word in pairs]


PARSE = """
import contextlib, importlib, io, json, runpy, socket, sys
import tyro

class Parsed(BaseException):
    pass

def refuse(*_, **__):
    raise OSError("no network while parsing")

def parse_only(*arguments, **options):
    parse(*arguments, **options)
    raise Parsed

parse, tyro.cli = tyro.cli, parse_only
socket.create_connection = socket.getaddrinfo = refuse

def run(name, arguments, entry):
    sys.argv = [name, *arguments]
    if name == "unclip":
        module, function = entry.split(":")
        getattr(importlib.import_module(module), function)()
    elif name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)

verdicts, (commands, entry) = [], json.load(sys.stdin)
for name, arguments in commands:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            run(name, arguments, entry)
        verdict = "it ended without parsing its arguments"
    except Parsed:
        verdict = ""
    except SystemExit as stop:
        verdict = "" if stop.code in (0, None) else f"{stop.code} {errors.getvalue()}"
    except Exception as error:
        verdict = repr(error)
    verdicts.append(verdict)
print(json.dumps(verdicts))
"""


def parse_all(commands: list, entry: str | None) -> list[str]:
    """Run each program, (name, arguments), up to the end of its parsing. Returns the error of each, or ""."""
    text = json.dumps([commands, entry])
    done = subprocess.run([sys.executable, "-c", PARSE], input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_command_is_accepted_by_the_parser_of_its_program():
    """Run each program up to the end of its parsing, with the arguments that the documentation shows."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    places: dict[tuple[str, tuple[str, ...]], str] = {}
    for command in all_commands():
        name, arguments = program(command.words)
        if name not in OUTSIDE | NO_OPTIONS | {"make"}:
            places.setdefault((name, tuple(parse_arguments(arguments))), command.place)
    assert len(places) > 50
    verdicts = parse_all(list(places), scripts["unclip"])
    wrong = {
        f"{place}: {name} {shlex.join(arguments)}": verdict
        for ((name, arguments), place), verdict in zip(places.items(), verdicts, strict=True)
        if verdict
    }
    assert not wrong, "\n".join(f"{command}\n    {verdict}" for command, verdict in wrong.items())


def test_every_make_target_and_variable_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for command in all_commands():
        name, arguments = program(command.words)
        if name == "make":
            named = [word for word in arguments if "=" not in word]
            variables = {word.split("=")[0] for word in arguments if "=" in word}
            assert named, command
            assert targets.issuperset(named), command
            assert variables <= VARIABLES, command
    assert all(f"$({variable})" in makefile for variable in VARIABLES)


def test_wrong_commands_would_be_noticed():
    commands = [
        ["train_prior.py", ["--draws", "4"]],
        ["sample.py", ["a bag", "--n", "many"]],
        ["sample.py", ["--n", "2"]],
    ]
    unknown, ill_typed, right = parse_all(commands, None)
    assert "--draws" in unknown
    assert "--n" in ill_typed
    assert not right


def test_commands_are_found():
    text = """A line, `make test`.

```
A=1 python sample.py "a b" \\
    --n 2 | cat     # twice
```

    python -m data.inspect x; rm y
"""
    found = [words for script in shell_text(text) for words in shell_commands(script)]
    assert found == [
        ("python", "sample.py", "a b", "--n", "2"),
        ("cat",),
        ("python", "-m", "data.inspect", "x"),
        ("rm", "y"),
        ("make", "test"),
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_python_examples_import_what_exists(path):
    for language, body in FENCE.findall(path.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in FOLDERS:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def slugs(markdown: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_and_pictures_exist(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{target} does not exist"
        assert not anchor or anchor in slugs(linked.read_text(encoding="utf-8")), f"{target} has no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_files_that_are_named_exist(path):
    names = {file.name for file in modules()}
    for span in re.findall(r"`([\w./-]+\.(?:py|ipynb))`", FENCE.sub("", path.read_text(encoding="utf-8"))):
        there = (ROOT / span).exists() or (path.parent / span).exists()
        assert there or span in EXAMPLES or ("/" not in span and span in names), f"{span} does not exist"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_sentences_begin_with_their_subject(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    prose = [line for line in text.splitlines() if not line.startswith(("|", "#", "    "))]
    for paragraph in re.split(r"\n\s*\n|\n- ", "\n".join(prose)):
        for sentence in re.split(r"(?<=[.:;!?])\s+", paragraph.strip()):
            assert not re.match(r"[*_]?(What|Of)\s", sentence) or sentence.endswith("?"), sentence


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1500


def test_line_counts_of_the_reading_order_are_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", text, re.MULTILINE)
    assert len(rows) > 10
    true = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file, _ in rows}
    wrong = {file: true[file] for file, count in rows if abs(int(count) - true[file]) > SLACK}
    assert not wrong, f"change the counts in README.md to {wrong}"


def test_the_map_of_folders_is_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [body] = [body for _, body in FENCE.findall(text) if body.startswith("unclip/")]
    parent, mapped = "", set()
    for line in body.splitlines():
        names = re.findall(r"(?:^|  )([\w-]+(?:/|\.py))(?=\s|$)", line)
        indented = line.startswith("  ")
        if not indented and names:
            parent = names[0]
        mapped |= {(parent if indented else "") + name for name in names}
    assert all((ROOT / name).exists() for name in mapped), mapped
    packages = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("[!t]*/*/__init__.py")}
    assert mapped >= packages, packages - mapped

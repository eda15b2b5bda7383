"""The tree's own rules, read off its syntax trees: who imports whom, what is never used, what is documented."""

import ast
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, run_python
from small_pipeline import build

LAYERS = ("unclip", "data", "stages", "configs")
SCRIPTS = ("train_clip", "train_prior", "train_decoder", "sample")
ORDER = {name: rank for rank, name in enumerate((*LAYERS, *SCRIPTS))}
FILES = sorted([*(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py")), *(ROOT / f"{s}.py" for s in SCRIPTS)])
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of all that is imported anywhere below a node."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def imports_on_import(tree: ast.AST) -> list[str]:
    """Names that are imported with the module: outside of functions."""
    if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return []
    own = imports(tree) if isinstance(tree, (ast.Import, ast.ImportFrom)) else []
    return own + [name for child in ast.iter_child_nodes(tree) for name in imports_on_import(child)]


def wrong_way(layer: str, tree: ast.AST) -> list[str]:
    """Imports of our own code that point up, or from one script to another."""
    rank = min(ORDER[layer], len(LAYERS))
    tops = [(name, name.split(".")[0]) for name in imports(tree)]
    return [name for name, top in tops if top in ORDER and top != layer and ORDER[top] >= rank]


def unpickling(tree: ast.AST) -> list[str]:
    """Calls that could run code hidden in a file."""
    found = [name for name in imports(tree) if name.split(".")[0] in UNPICKLERS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and f"{ast.unparse(node.value)}.{node.attr}" in ("torch.load", "torch.save"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            found.append(node.arg)
    return found + [name for name in imports(tree) if name in ("torch.load", "torch.save")]


NESTED = {"data", "model", "augment", "train", "prior", "decoder", "fast_decoder", "upsampler"}
"""Fields that hold a nested config."""


def undocumented_options(tree: ast.AST) -> list[str]:
    """Fields of config dataclasses without a docstring beneath; a nested config has its own fields to document."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or not node.name.endswith(("Config", "Run", "Options", "Sampling")):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if not documented and field.target.id not in (
                    "data",
                    "model",
                    "augment",
                    "train",
                    "prior",
                    "decoder",
                    "fast_decoder",
                    "upsampler",
                ):
                    found.append(f"{node.name}.{field.target.id}")
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_walk_meets_every_module():
    assert len(FILES) > 30
    assert {path.name for path in FILES} >= {"pipeline.py", "loop.py", "image_folder.py", "sample.py"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_one_way(path):
    layer = path.relative_to(ROOT).with_suffix("").parts[0]
    assert wrong_way(layer, parsed(path)) == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("unclip", "import data.captions"),
        ("unclip", "def f():\n    from stages import loop"),
        ("data", "from configs.clip import PRESETS"),
        ("stages", "import sample"),
        ("sample", "import train_clip"),
        ("stages", "from configs import clip"),
    ],
)
def test_wrong_imports_would_be_noticed(layer, source):
    assert wrong_way(layer, ast.parse(source))
    assert not wrong_way("train_clip", ast.parse("from configs.clip import PRESETS\nimport unclip, datasets"))


@pytest.mark.parametrize("path", sorted((ROOT / "unclip" / "diffusion").glob("*.py")), ids=lambda path: path.stem)
def test_diffusion_and_samplers_know_no_model(path):
    shared = {"unclip.errors", "unclip.fields", "unclip.tensor_batch"}
    modules = {name for name in imports(parsed(path)) if name.startswith("unclip") and name.count(".") == 1}
    assert modules <= shared | {"unclip.diffusion"}


def reads_arguments(tree: ast.AST) -> bool:
    """Whether code reads the arguments of the process instead of taking those that it is given."""
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv" for node in ast.walk(tree))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_arguments_of_the_process_are_read_in_one_place(path):
    assert reads_arguments(parsed(path)) == (path == ROOT / "unclip" / "cli" / "options.py")


OF_THE_PAGE = {f"page/{name}.py" for name in ("layout", "server", "tabs", "toolbar")}
"""Modules that are imported when the page is served."""


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_slow_libraries_are_imported_only_where_they_are_used(path):
    slow = {"torchvision", "datasets", "transformers", "matplotlib", "gradio", "xxhash"}
    slow -= {"gradio"} if f"{path.parent.name}/{path.name}" in OF_THE_PAGE else set()
    assert not slow & {name.split(".")[0] for name in imports_on_import(parsed(path))}


def test_slow_import_would_be_noticed():
    source = "try:\n    import torchvision\nexcept ImportError:\n    pass\ndef f():\n    import datasets"
    assert imports_on_import(ast.parse(source)) == ["torchvision"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_unpickled(path):
    assert unpickling(parsed(path)) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "import torch\ntorch.load('x')", "np.load(f, allow_pickle=True)", "from torch import load"],
)
def test_unpickling_would_be_noticed(source):
    assert unpickling(ast.parse(source))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_option_is_documented(path):
    assert undocumented_options(parsed(path)) == []


def test_undocumented_option_would_be_noticed():
    source = 'class AConfig:\n    x: int = 1\n    """Said."""\n    y: int = 2\n    inner: BConfig = 3'
    assert undocumented_options(ast.parse(source)) == ["AConfig.y"]


def test_only_the_library_and_its_subpackages_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in (ROOT / "unclip").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == found
    assert project["project"]["scripts"] == {"unclip": "unclip.cli.main:main"}


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in FILES} - {"."}))
def test_packages_are_regular_ones(folder):
    assert (ROOT / folder / "__init__.py").is_file()


HELP = """
import runpy, socket, sys
def refuse(*_, **__):
    raise OSError("no network while importing")
socket.create_connection = socket.getaddrinfo = refuse
for program in sys.argv[2:]:
    name, *command = program.split()
    sys.argv = [name, *command, "--help"]
    run = runpy.run_path if name.endswith(".py") else runpy.run_module
    try:
        run(name, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
slow = [name for name in SLOW if name in sys.modules]
sys.exit(f"imported {slow}" if slow else 0)
"""


def run_help(slow: tuple[str, ...], *programs: str):
    """Print the help of scripts or modules, each with a command after it if it has some, and look for slow imports."""
    return run_python("-c", HELP.replace("SLOW", repr(slow)), "-", *programs)


@pytest.mark.parametrize("program", ["sample.py", "unclip sample"])
def test_help_of_sample_imports_no_torch(program):
    finished = run_help(("torch", "torchvision", "datasets", "tokenizers"), program)
    assert finished.code == 0, finished.err
    assert f"usage: {program} " in finished.out
    for option in ("--checkpoint", "--captions-file", "--steps", "--guidance", "--sampler", "--npz", "--gif", "--strip",
                   "--seed", "--n ", "--out"):  # fmt: skip
        assert option in finished.out


def test_help_of_what_needs_no_model_imports_no_torch():
    programs = [f"unclip{command}" for command in ("", " info", " publish", " export", " page")]
    finished = run_help(("torch", "numpy", "gradio"), *programs)
    assert finished.code == 0, finished.err
    for words in ("unclip edit vary shoe.png", "usage: unclip info ", "--to-hub", "--to {hf,onnx,web}", "--port"):
        assert words in finished.out


def test_help_of_the_trainers_imports_no_torchvision_and_fetches_nothing():
    finished = run_help(("torchvision", "datasets"), "train_clip.py", "train_prior.py", "train_decoder.py")
    assert finished.code == 0, finished.err
    for option in ("--out", "--preset", "--train.lr", "--data.root", "--model.vision.width", "--model.schedule"):
        assert option in finished.out


def test_help_check_would_notice_torch():
    assert "imported ['argparse']" in run_help(("argparse",), "sample.py").err


DRAW = """
import runpy, sys
sys.argv = ["sample.py", "a bag", "--checkpoint", sys.argv[1], "--out", sys.argv[2]]
try:
    runpy.run_path("sample.py", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
slow = {"datasets", "transformers", "torchvision", "pandas", "scipy", "sympy", "matplotlib", "torch._dynamo"}
sys.exit(f"imported {sorted(slow & sys.modules.keys())}" if slow & sys.modules.keys() else 0)
"""


def test_drawing_imports_neither_data_sets_nor_other_models_nor_the_compiler(tmp_path):
    """Look at the modules that a first picture loads: sympy and torch._dynamo alone take longer than the rest."""
    finished = run_python("-c", DRAW, build(tmp_path / "pipeline"), tmp_path / "out")
    assert finished.code == 0, finished.err
    assert (tmp_path / "out" / "grid.png").is_file()


def test_draw_check_would_notice_an_import(tmp_path):
    source = DRAW.replace("import runpy", "import sympy, runpy")
    assert "imported ['sympy']" in run_python("-c", source, build(tmp_path / "pipeline"), tmp_path / "out").err


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
             "randperm", "scalar_tensor", "tensor", "zeros"}  # fmt: skip
TYPED_BY_ARGUMENTS = {"arange", "as_tensor", "randint", "randperm", "tensor"}
"""Factories whose type is the default only where they are given Python's floats."""


def follows_defaults(tree: ast.AST) -> list[str]:
    """Calls that make a tensor of PyTorch's default type or on its default device, outside of building a model."""
    if isinstance(tree, ast.FunctionDef) and tree.name == "__init__":
        return []  # PyTorch's own layers follow the defaults too
    found = [call for child in ast.iter_child_nodes(tree) for call in follows_defaults(child)]
    module, _, name = ast.unparse(tree.func).rpartition(".") if isinstance(tree, ast.Call) else ("", "", "")
    if module == "torch" and name in FACTORIES:
        given = {keyword.arg for keyword in tree.keywords}
        if "device" not in given or not ("dtype" in given or name in TYPED_BY_ARGUMENTS):
            found.append(ast.unparse(tree))
    return found


@pytest.mark.parametrize("path", [path for path in FILES if ROOT / "unclip" in path.parents], ids=str)
def test_tensors_follow_no_default_of_the_process(path):
    assert follows_defaults(parsed(path)) == []


@pytest.mark.parametrize("source", ["torch.zeros(3, device='cpu')", "torch.arange(3)", "torch.tensor([1.0])"])
def test_following_a_default_would_be_noticed(source):
    assert follows_defaults(ast.parse(source)) == [source]

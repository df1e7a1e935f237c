"""The rules of the house as tests: ladder, cycles, sizes, names (docs: the design's sections 2, 3 and 6)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "opticus"
FILES = sorted(SRC.rglob("*.py"))

LEVELS = {
    "structures": 0,
    "ops": 0,
    "layers": 1,
    "losses": 1,
    "matching": 1,
    "diffusion": 1,
    "text": 1,
    "transforms": 1,
    "weights": 1,
    "parity": 1,
    "models": 2,
    "data": 3,
    "metrics": 3,
    "plot": 3,
    "training": 3,
    "zoo": 4,
    "verbs": 4,
    "recipes": 5,
    "cli": 6,
    "serve": 6,
}
SEPARATE = {"data", "metrics", "plot", "training"}
BANNED = {"utils", "common", "core", "misc", "helpers", "util", "helper"}
LONG_FILE, LONG_FUNCTION, MANY_ARGUMENTS, MANY_FIELDS = 600, 70, 10, 12
BASES = {
    "Protocol",
    "NamedTuple",
    "Enum",
    "IntEnum",
    "StrEnum",
    "Exception",
    "Function",
    "Dataset",
    "Sampler",
    "Module",
    "ABC",
    "Generic",
}

# exceptions to a rule, each with its reason: (room, base class) -> reason
ALLOWED = {
    ("data", "Unpickler"): "a restricted unpickler must subclass pickle.Unpickler, there is no other interface",
    ("training", "Optimizer"): "accelerate prepares and schedules nothing but subclasses of torch's Optimizer",
    ("verbs", "TorchFunctionMode"): "torch hands every operation to a subclass of it, there is no other interface",
}


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> list[tuple[str, int]]:
    """(imported opticus module, line), type-only and deferred imports included."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "opticus"]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module and node.module.split(".")[0] == "opticus":
                names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "opticus" else [node.module]
                found += [(name, node.lineno) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_down_the_ladder(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name, line in imports(path):
        if name == "opticus" or (name.startswith("opticus.") and name.split(".")[1] not in LEVELS):
            assert LEVELS[here] >= 5, f"{path}:{line}: {here} imports the package itself ({name})"
            continue
        there = name.split(".")[1]
        assert LEVELS[there] <= LEVELS[here], f"{path}:{line}: {here} (L{LEVELS[here]}) imports {there} (L{LEVELS[there]})"
        assert not (here in SEPARATE and there in SEPARATE and here != there), f"{path}:{line}: {here} imports its sibling {there}"
        if here == "models":
            assert there != "models" or name.split(".")[-1] in _relatives(path), f"{path}:{line}: a paper imports the paper {name}"


def _relatives(path: Path) -> set[str]:
    """The one ancestor paper, and the file's own weight rows."""
    found = re.search(r'^EXTENDS\s*=\s*"(\w+)"', path.read_text(), re.M)
    return {f"{path.stem}_weights"} | ({found.group(1)} if found else set())


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(("opticus", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
        toplevel = {n.lineno for n in tree(path).body}
        graph[module] = {name for name, line in imports(path) if line in toplevel and name != module}
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        state[module] = 1
        for other in graph.get(module, ()):
            assert state.get(other) != 1, " -> ".join((*trail, module, other))
            if other not in state:
                visit(other, (*trail, module))
        state[module] = 2

    for module in graph:
        if module not in state:
            visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_sizes_and_bases(path: Path) -> None:
    where = path.relative_to(SRC)
    assert not BANNED & {part.removesuffix(".py") for part in where.parts}, f"{where}: a name that says nothing"
    assert len(path.read_text().splitlines()) <= LONG_FILE, f"{where}: more than {LONG_FILE} lines"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONG_FUNCTION, f"{where}:{node.lineno}: {node.name} has {lines} lines"
            if node.name == "__init__":
                assert len(node.args.kwonlyargs) <= MANY_ARGUMENTS, f"{where}:{node.lineno}: too many keyword-only arguments"
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                name = base.value if isinstance(base, ast.Subscript) else base
                name = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
                allowed = name in BASES or name.endswith("Error") or (where.parts[0], name) in ALLOWED
                assert allowed, f"{where}:{node.lineno}: {node.name} inherits from {name}"
            if node.name == "Config":
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                assert len(fields) <= MANY_FIELDS, f"{where}: Config has {len(fields)} fields"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_words(path: Path) -> None:
    text = path.read_text()
    where = path.relative_to(SRC)
    for word in ("NotImplementedError", "TODO", "FIXME", "XXX", "weights_only=False", "shell=True", "allow_pickle=True"):
        assert word not in text, f"{where}: {word}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            call = f"{owner.id}.{node.func.attr}" if isinstance(owner, ast.Name) else node.func.attr
            assert call not in ("pickle.load", "pickle.loads", "os.system"), f"{where}:{node.lineno}: {call}"
            assert call != "torch.load" or room(path) == "weights", f"{where}:{node.lineno}: torch.load outside weights/"
    if LEVELS.get(room(path), 9) <= 1:
        assert not re.search(r"type:\s*ignore|pyright:\s*ignore", text), f"{where}: a type-check exception in L0 or L1"


def test_torch_load_is_called_in_one_function() -> None:
    calls = [
        str(p)
        for p in FILES
        for line in p.read_text().splitlines()
        if "torch.load(" in line and not line.strip().startswith(("#", '"'))
    ]
    assert len(set(calls)) <= 1, f"torch.load is called in {sorted(set(calls))}"


def test_paper_stems_are_unique_and_files_have_their_exports() -> None:
    papers = [p for p in FILES if room(p) == "models" and p.stem != "__init__" and not p.stem.startswith("_")]
    stems = [p.stem for p in papers]
    assert len(stems) == len(set(stems))
    for path in papers:
        if path.stem.endswith("_weights"):
            continue
        names = {t.id for n in tree(path).body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        names |= {n.target.id for n in tree(path).body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        names |= {n.name for n in tree(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        names |= {a.name for n in tree(path).body if isinstance(n, ast.ImportFrom) for a in n.names}  # from <paper>_weights
        wanted = {"TASK", "Config", "VARIANTS", "NETWORK", "PREPARE", "FORMATS", "WEIGHTS", "PARAMETERS", "objective"}
        assert wanted <= names, f"{path.name} lacks {', '.join(sorted(wanted - names))}"
        assert (SRC / "parity" / f"{path.stem}.json").is_file(), f"{path.name} has no parity record"


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import opticus", ("matplotlib", "scipy", "skimage", "sklearn", "PIL", "accelerate", "hotcoco", "tyro", "torch")),
        ("import opticus; opticus.create", ("matplotlib", "scipy", "skimage", "sklearn", "accelerate", "hotcoco", "tyro")),
        ("import opticus.cli.main", ("torch", "matplotlib", "scipy", "skimage", "sklearn", "PIL", "accelerate", "hotcoco")),
    ],
)
def test_imports_are_lazy(code: str, without: tuple[str, ...]) -> None:
    script = f"{code}\nimport sys\nprint([m for m in {without!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

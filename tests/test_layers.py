"""Imports within leanonnx point downwards only, each layer imports only what it may, and nothing grows too large."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import leanonnx

ROOT = Path(leanonnx.__file__).parent
FLOORS = [
    {"version", "errors", "spelling", "formatting", "effort", "numeric", "operators"},
    {"checks", "system", "graph"},
    {"runtime", "rules", "hardware"},
    {"analysis", "data"},
    {"inputs", "statistics"},
    {"ranking", "surgery", "proof"},
    {"evaluation"},
    {"recovery"},
    {"quantization"},
    {"selection"},
    {"lossless"},
    {"reporting"},
    {"commands.compress"},
    {"commands.bench", "commands.sweep", "commands.finetune", "page"},
    {"commands.calibrate", "commands.check"},
    {"api"},
    {"cli", "torch", "integrations"},
]
"""The rooms of the house: a module may import its own room and those on lower floors; a new room has to be put here."""

ONLY = {
    "onnxruntime": {"runtime.providers", "runtime.sessions", "quantization.qdq"},
    "typer": {"cli"},
    "platformdirs": {"cli"},
    "psutil": {"system"},
    "rich": {"cli", "*.tables", "reporting.bars", "api.progress"},
    "matplotlib": {"commands.sweep.plot"},
    "distributed": {"commands.sweep.cluster"},
    "PIL": set(),
    "jinja2": {"page.page"},
    "pandas": {"system.notebook"},
    "torch": {"commands.finetune", "torch", "system.gpu"},
    "olive": {"integrations.olive"},
}
"""The rooms or modules that may import a library; ``*.name`` means the modules of this name in all rooms."""
NO_TORCH = {"commands.finetune.report", "commands.finetune.rows", "commands.finetune.tables"}
NO_TORCH |= {"commands.finetune.steps", "torch.cuts"}
NO_ONNX = {
    "errors",
    "numeric",
    "system",
    "selection",
    "ranking.criteria",
    "data.npz",
    "data.images",
    "evaluation.scores",
}
NO_ONNX |= {"commands.check.gates", "commands.check.verdicts", "page", "reporting"}
NO_ONNX |= {"*.report", "*.rows", "*.tables"}
NO_ONNX |= {"cli.check", "cli.compress", "cli.inspect", "rules"}
"""Rooms and modules that see models only through what lies below them."""
OPTIONAL = {"system.gpu", "system.notebook", "api.training", "cli.finetune", "commands.sweep.extras"}
"""Modules that import within a function, because what they import needs an optional extra."""
PLACELESS = {"", "__main__", "commands"}
"""Modules and rooms without a floor: the public names, the entry points, and the folder of the commands."""
LONGEST_FILE = 400
LONGEST_FUNCTION = 80


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """Modules of leanonnx that a module imports."""
    found = set()
    for target in imports(TREES[name]):
        if target.startswith("leanonnx."):
            inner = target.removeprefix("leanonnx.")
            found.add(inner if inner in TREES else inner.rpartition(".")[0])
    return found


def room(name: str) -> str:
    """The package that a module is in; the packages of ``commands`` are rooms of their own."""
    parts = name.split(".")
    return ".".join(parts[:2] if parts[0] == "commands" else parts[:1])


def within(name: str, places: set[str]) -> bool:
    """True if a module is one of these, in one of these rooms, or has one of these names."""
    return name in places or room(name) in places or f"*.{name.rpartition('.')[2]}" in places


def test_every_room_has_a_floor() -> None:
    placed = [each for floor in FLOORS for each in floor]
    assert len(placed) == len(set(placed))
    assert set(placed) == {room(name) for name in TREES} - PLACELESS, "put the new room into FLOORS"


@pytest.mark.parametrize("name", sorted(set(TREES) - PLACELESS))
def test_imports_go_down(name: str) -> None:
    height = {each: k for k, floor in enumerate(FLOORS) for each in floor}
    others = {target for target in own_imports(name) if room(target) != room(name)}
    assert {target for target in others if height[room(target)] >= height[room(name)]} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = TopologicalSorter({name: own_imports(name) for name in TREES}).static_order()
    assert set(order) == set(TREES)


def test_packages_import_nothing_but_the_public_names() -> None:
    faces = {module_name(path) for path in ROOT.rglob("__init__.py")} - {"", "torch"}
    assert all(own_imports(name) == set() for name in faces)
    assert own_imports("") == set()
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    assert not any(target.startswith((".cli", "leanonnx.cli")) for target in imports(stub))
    assert all(ast.get_docstring(TREES[name]) for name in faces)


def test_nothing_imports_relatively_or_privately() -> None:
    """One way to name a module; an underscore means: of this module only."""
    found = {
        (name, target)
        for name, tree in TREES.items()
        for target in imports(tree)
        if target.startswith((".", "leanonnx")) and ("._" in target or target[0] == ".")
    }
    assert {pair for pair in found if not pair[1].endswith("__version__")} == set()


@pytest.mark.parametrize("library", ONLY)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = {name for name, tree in TREES.items() if library in {t.partition(".")[0] for t in imports(tree)}}
    assert {name for name in users if not within(name, ONLY[library])} == set()
    assert library != "torch" or users & NO_TORCH == set()


def test_pure_layers_know_no_onnx() -> None:
    libraries = {"onnx", "onnx_graphsurgeon", "onnxruntime"}
    users = {name for name, tree in TREES.items() if libraries & {t.partition(".")[0] for t in imports(tree)}}
    assert {name for name in users if within(name, NO_ONNX)} == set()


def test_imports_are_at_the_top() -> None:
    inner = {
        (name, node.lineno)
        for name, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {name for name, _ in inner} <= OPTIONAL


def test_nothing_below_the_command_line_prints_or_reads_the_environment() -> None:
    forbidden = {"print", "input", "stdout", "stderr", "environ", "getenv"}
    found = {
        (name, node.lineno)
        for name, tree in TREES.items()
        if not name.startswith("cli")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in forbidden - {"input"})
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden)
    }
    assert found == set()


def test_files_are_short() -> None:
    assert {name: n for name, text in SOURCES.items() if (n := len(text.splitlines())) > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


BLOCK = 10
"""Number of successive lines that must not occur twice in the project; imports, comments and brackets do not count."""


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines of a file that count."""
    source = path.read_text(encoding="utf-8")
    imported = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = [(number, line.strip()) for number, line in enumerate(source.splitlines(), 1) if number not in imported]
    return [(number, line) for number, line in lines if line.strip("()[]{},") and not line.startswith("#")]


def test_no_block_of_ten_lines_stands_twice() -> None:
    places: dict[tuple[str, ...], list[str]] = {}
    folders = (ROOT, *(ROOT.parent / name for name in ("benchmarks", "docs", "models", "tests")))
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        lines = code_lines(path)
        for start in range(len(lines) - BLOCK + 1):
            block = tuple(line for _, line in lines[start : start + BLOCK])
            places.setdefault(block, []).append(f"{path.relative_to(ROOT.parent)}:{lines[start][0]}")
    assert [found for found in places.values() if len(found) > 1] == []


BASES = {
    "Enum",
    "Exception",
    "Flag",
    "Mapping[str, Any]",
    "NamedTuple",
    "Pass",
    "Protocol",
    "TyperGroup",
    "torch.nn.Module",
}
"""Classes of others that ours may extend."""


def test_classes_of_ours_are_not_extended() -> None:
    """A class is abstract or final; only errors form a tree."""
    found = {
        (name, node.name, ast.unparse(base))
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and name != "errors"
        for base in node.bases
    }
    errors = {node.name for node in TREES["errors"].body if isinstance(node, ast.ClassDef)}
    assert {each for each in found if each[2] not in BASES | errors} == set()


THAWED = {("analysis.trace", "Trace")}
"""Classes that are filled while the nodes of a model are visited."""


@pytest.mark.parametrize("name", sorted(TREES))
def test_data_are_frozen(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ClassDef) and (name, node.name) not in THAWED:
            for decorator in node.decorator_list:
                if "dataclass" in ast.dump(decorator):
                    assert "frozen=True" in ast.unparse(decorator), (
                        f"{name}.{node.name} is a dataclass that is not frozen"
                    )

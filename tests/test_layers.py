"""Imports of leanonnx only go down, each layer knows only what it may know, and nothing grows too large."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import leanonnx

ROOT = Path(leanonnx.__file__).parent
LAYERS = [
    {"version", "remarks", "errors", "labels", "norms", "chains", "storage", "formats", "memory", "clock", "nodes"}
    | {"cores", "intervals", "processes", "page.texts", "sweeping.knee"},
    {"checks", "model", "outputs", "rules.advice", "targets", "gates", "npz", "scores", "sweeping.journal"},
    {"images", "sources"},
    {"rules.call", "runtime.sessions", "noops"},
    {"rules.joins", "rules.weights", "rules.assembly", "rules.check", "merge", "datafiles", "revisions"},
    {"rules.products", "runtime.providers", "tidy", "data"},
    {"runs", "runtime.observation", "rules.linear", "rules.movement", "rules.normalization", "rules.pointwise"}
    | {"rules.quantization", "rules.reduction", "rules.spatial", "rules.convolution", "rules.indexing"}
    | {"rules.recurrent", "rules.windows"},
    {"rules.table", "constants", "runtime.fastpath", "interface"},
    {"analysis", "userrules", "runtime.timing", "runtime.profiling", "runtime.machine", "probes", "versions"}
    | {"gaussian", "obs", "runtime.taps", "recovery.patches", "recovery.walk"},
    {"closure", "cost", "naming", "patch", "runtime.fresh", "steady", "calibration", "moments"}
    | {"recovery.layers", "recovery.pair", "recovery.regression"},
    {"latency", "pathmass", "beliefs", "recovery.rows", "recovery.rescale"},
    {"recovery.fold", "recovery.blind", "weigh"},
    {"limits", "criteria", "surgery", "plan", "proof", "exact"},
    {"widths", "deviation", "recovery.recover", "recovery.noise"},
    {"exchange", "recovery.draft", "recovery.unseen"},
    {"keeper"},
    {"selection"},
    {"minimal", "options", "search", "contest"},
    {"workshop"},
    {"pipeline"},
    {"report", "benchmark"},
    {"bench_report", "calibrate", "verdicts", "results", "sweeping.making", "sweeping.report"}
    | {"page.headline", "page.network", "page.kernels", "page.chains", "page.times", "page.deviation", "page.pins"}
    | {"page.samples"},
    {"page.page", "calibration_report", "check", "sweeping.cluster", "sweeping.request", "sweeping.plot"},
    {"check_report", "api", "sweeping.driver"},
    {"tune.call", "tune.weights"},
    {"tune.linear", "tune.pointwise", "tune.normalization", "tune.indexing", "tune.reduction", "tune.resize"}
    | {"tune.recurrent", "tune.world", "tune.checkpoint", "tune.targets", "tune.loading"},
    {"tune.movement", "tune.spatial", "tune.losses"},
    {"tune.operators"},
    {"tune.module"},
    {"tune.trip"},
    {"tune.batching"},
    {"tune.augment"},
    {"tune.lessons"},
    {"tune.teachers", "tune.training"},
    {"tune.driver"},
    {"tune.steps"},
    {"tune.report"},
    {"torch.cuts"},
    {"torch.modules"},
    {"torch.running"},
    {"torch.matching"},
    {"torch.slicing"},
    {"torch"},
    {"cli.options", "cli.terminal"},
    {"cli.bench", "cli.calibrate", "cli.check", "cli.compress", "cli.finetune", "cli.inspect", "cli.sweep"},
    {"cli.main", "cli.hook"},
]
"""A module may import those of the sets above its own, not of its own; a new module has to be put somewhere."""

PACKAGES = {"", "cli", "page", "recovery", "rules", "runtime", "sweeping", "tune"}
ONLY = {
    "onnxruntime": {"runtime.providers", "runtime.sessions"},
    "typer": {"cli.bench", "cli.calibrate", "cli.check", "cli.compress", "cli.finetune", "cli.inspect", "cli.main"}
    | {"cli.options", "cli.sweep", "cli.terminal"},
    "rich": {"bench_report", "calibration_report", "check_report", "report", "sweeping.report", "tune.report"}
    | {"cli.terminal"},
    "matplotlib": {"sweeping.plot"},
    "distributed": {"sweeping.cluster"},
    "PIL": set(),
    "jinja2": {"page.page"},
    "torch": {name for layer in LAYERS for name in layer if name.startswith(("tune.", "torch"))}
    - {"tune.report", "tune.steps", "torch.cuts"},
}
"""Which modules may import a library."""
NO_ONNX = {
    "errors",
    "labels",
    "norms",
    "chains",
    "cores",
    "intervals",
    "selection",
    "criteria",
    "report",
    "gates",
    "verdicts",
    "check_report",
    "cli.check",
    "cli.compress",
    "cli.inspect",
    "npz",
    "images",
    "scores",
}
OPTIONAL = {"cli.finetune", "cli.sweep"}
"""Modules that import within a function, because what they import needs an optional extra."""
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


def test_every_module_has_a_layer() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(TREES) - PACKAGES, "put the new module into LAYERS"


@pytest.mark.parametrize("name", sorted(set(TREES) - PACKAGES))
def test_imports_go_down(name: str) -> None:
    height = {module: k for k, layer in enumerate(LAYERS) for module in layer}
    upward = {target for target in own_imports(name) if height[target] >= height[name]}
    assert upward == set()


def test_packages_import_nothing_but_the_public_names() -> None:
    assert all(own_imports(name) == set() for name in PACKAGES - {""})
    assert not any(target.startswith("cli") for target in own_imports(""))


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
    assert users <= ONLY[library]


def test_pure_layers_know_no_onnx() -> None:
    rules = {name for name in TREES if name.startswith("rules")}
    libraries = {"onnx", "onnx_graphsurgeon", "onnxruntime"}
    users = {name for name, tree in TREES.items() if libraries & {t.partition(".")[0] for t in imports(tree)}}
    assert users & (NO_ONNX | rules) == set()


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


THAWED = {("analysis", "_Trace")}
"""What is filled while the nodes of a model are visited."""


@pytest.mark.parametrize("name", sorted(set(TREES) - PACKAGES))
def test_data_are_frozen(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ClassDef) and (name, node.name) not in THAWED:
            for decorator in node.decorator_list:
                if "dataclass" in ast.dump(decorator):
                    assert "frozen=True" in ast.unparse(decorator), (
                        f"{name}.{node.name} is a dataclass that is not frozen"
                    )

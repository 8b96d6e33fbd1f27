"""The words of the package: how docstrings open, how functions are named, and that each public name has one meaning."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import leanonnx

ROOT = Path(leanonnx.__file__).parent
TREES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}
QUESTION = re.compile(r"(What|Whether|Which|How|Where|When|Who|Why)\b")
IRREGULAR = re.compile(
    "(un|re)?(begun|bent|born|bought|broken|brought|built|caught|chosen|done|drawn|driven|fed|felt|found|given|gone|got|"
    "grown|had|heard|held|hidden|kept|known|laid|led|left|lent|lost|made|meant|met|paid|proven|said|seen|sent|shaken|"
    "shown|shrunk|sold|spent|spoken|stolen|stood|sunk|taken|taught|thought|thrown|told|torn|understood|won|worn|written)"
)
NO_PARTICIPLES = {"embed", "exceed", "feed", "indeed", "need", "proceed", "seed", "shed", "speed", "succeed", "weed"}
"""Words that end in -ed and are none."""
SHARE = 0.01
"""Largest share of docstrings, and of functions, that may break a rule."""
MOST_FOUND = 10


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in TREES.items():
        yield from (
            (module, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )


def docstrings() -> Iterator[tuple[str, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text:
                yield f"{module}:{getattr(node, 'lineno', 1)}", text


def is_bare_participle(name: str) -> bool:
    """True for a single word such as ``fitted`` or ``found``, leading and trailing underscores aside."""
    word = name.strip("_")
    if "_" in word or word in NO_PARTICIPLES:
        return False
    return word.endswith("ed") or IRREGULAR.fullmatch(word) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("fitted", True), ("_found", True), ("unwritten", True), ("retold", True)),
        *((name, False) for name in ("fit", "seed", "read", "fitted_rows", "feed", "embed", "is_fitted")),
    ],
)
def test_bare_participles_are_distinguished_from_other_names(name: str, expected: bool) -> None:
    assert is_bare_participle(name) is expected


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    texts = list(docstrings())
    asking = [f"{place}: {text.splitlines()[0]}" for place, text in texts if QUESTION.match(text)]
    assert len(texts) > 1000
    assert len(asking) <= SHARE * len(texts), asking


def test_functions_are_not_named_by_a_bare_participle() -> None:
    named = [f"{module}.{node.name}" for module, node in functions()]
    participles = [name for name in named if is_bare_participle(name.rpartition(".")[2])]
    assert len(named) > 1000
    assert len(participles) <= SHARE * len(named), participles


def test_nothing_is_called_found() -> None:
    uses = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "found") or (isinstance(node, ast.arg) and node.arg == "found")
    ]
    assert len(uses) <= MOST_FOUND, uses


def definitions(tree: ast.Module) -> Iterator[str]:
    """Names that a module binds at its top level, imports aside."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def repeated(wanted: str) -> dict[str, list[str]]:
    """Names of a form that several modules define, with these modules."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module, tree in TREES.items():
        for name in set(definitions(tree)):
            if re.fullmatch(wanted, name):
                places[name].append(module)
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def test_a_public_name_is_defined_once() -> None:
    assert repeated(r"[A-Za-z]\w*") == {}


def test_a_constant_has_one_meaning() -> None:
    assert repeated(r"_?[A-Z][A-Z0-9_]*") == {}

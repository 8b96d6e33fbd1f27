"""Messages name parameters as the caller writes them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import leanonnx
from leanonnx.errors import OptionError
from leanonnx.spelling import call_text, current_spelling, option, option_list, spelled_for, verb
from tests.helpers import CNN, build, called, saved

ROOT = Path(leanonnx.__file__).parent
DASHED = re.compile(r"(?<![\w-])--(?=$|[a-z{])")
"""The beginning of an option of the command line."""
OTHER_PROGRAMS = {"--filters"}
"""Options that leanonnx gives to other programs."""

SPELLED = [
    (("calib",), "calib", "--calib"),
    (("best_effort", True), "best_effort=True", "--best-effort"),
    (("measure", False), "measure=False", "--no-measure"),
    (("keep", 1.5), "keep=1.5", "--keep 1.5"),
    (("keep", 1.0), "keep=1", "--keep 1"),
    (("target", "cpu"), "target='cpu'", "--target cpu"),
    (("size", (224, 96), "224x96"), "size=(224, 96)", "--size 224x96"),
    (("max-bytes",), "max_bytes", "--max-bytes"),
]


@pytest.mark.parametrize(("given", "python", "typed"), SPELLED, ids=[typed for _, _, typed in SPELLED])
def test_options_are_spelled_for_the_caller(given: tuple[Any, ...], python: str, typed: str) -> None:
    assert option(*given) == python
    with spelled_for("command line"):
        assert option(*given) == typed
    assert option(*given) == python


def test_lists_and_verbs() -> None:
    assert (option_list("a", "b_c", "d"), verb("inspect")) == ("a, b_c and d", "leanonnx.analyse")
    with spelled_for("command line"):
        assert (option_list("a", "b_c", "d", last="or"), verb("inspect")) == ("--a, --b-c or --d", "leanonnx inspect")


def test_verbs_are_functions() -> None:
    for name in ("compress", "inspect", "bench", "check", "sweep", "finetune", "calibrate-device"):
        assert callable(getattr(leanonnx, verb(name).removeprefix("leanonnx.")))


def test_spelling_ends_with_the_command(tmp_path: Path) -> None:
    model = saved(build(CNN), tmp_path / "model.onnx")
    assert (
        "--pin ghost: no tensor"
        in called("compress", model, tmp_path / "o.onnx", "--keep", 0.5, "--pin", "ghost").stderr
    )
    assert current_spelling() == "python"
    with pytest.raises(OptionError, match=r"^pin='ghost': no tensor.*see `leanonnx.analyse`"):
        leanonnx.compress(model, keep=0.5, pin="ghost")


def constants(tree: ast.Module) -> Iterator[ast.Constant]:
    """String constants that are no docstrings."""
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        for statement in (node.body if isinstance(getattr(node, "body", None), list) else [])
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def test_nothing_below_the_command_line_spells_its_options() -> None:
    files = [path for path in ROOT.rglob("*.py") if not path.is_relative_to(ROOT / "cli")]
    spelled = {
        (path.relative_to(ROOT).as_posix(), node.lineno, node.value)
        for path in files
        for node in constants(ast.parse(path.read_text(encoding="utf-8")))
        if DASHED.search(node.value)
    }
    assert {each for each in spelled if each[0] != "spelling.py" and each[2] not in OTHER_PROGRAMS} == set()


def test_places_that_look_like_options() -> None:
    with spelled_for("command line"):
        assert shlex.split(call_text("bench", "-a.onnx", "b c.onnx"))[2:] == ["./-a.onnx", "b c.onnx"]

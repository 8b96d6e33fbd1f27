"""House rules for tests: files stay short, and every name in the smoke subset exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.smoke import SMOKE

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("*.py"))
LONGEST_FILE = 400


def test_files_are_short() -> None:
    """A file that grows longer is split by what it tests."""
    lengths = {path.relative_to(HERE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize("file", SMOKE)
def test_smoke_names_exist(file: str) -> None:
    """Each prefix matches a test in its file, up to its parameters."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    for start in SMOKE[file]:
        name, bracket, _ = start.partition("[")
        assert name in tests if bracket else any(test.startswith(name) for test in tests), f"no {start} in {file}"

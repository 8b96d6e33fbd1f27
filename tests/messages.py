"""Messages of leanonnx as they stand in its source, with ``…`` for what is filled in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import leanonnx
from leanonnx import errors

KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
"""Exceptions whose message is shown to a user."""


def templates(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may give; nothing for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from templates(node.body)
        yield from templates(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for first, second in product(templates(node.left), templates(node.right)):
            yield first + second


@cache
def nodes() -> tuple[ast.AST, ...]:
    """All nodes of the source."""
    paths = sorted(Path(leanonnx.__file__).parent.rglob("*.py"))
    return tuple(node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def raised() -> dict[str, str]:
    """Template of each message that is raised for a user → the exception."""
    found = {}
    for node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
            found |= {evened(template): node.func.id for template in templates(node.args[0])}
    return found


@cache
def said() -> frozenset[str]:
    """Templates of all texts in the source, warnings among them."""
    return frozenset(evened(text) for node in nodes() if isinstance(node, ast.expr) for text in templates(node))


def evened(template: str) -> str:
    """A template with one ``…`` for several side by side."""
    return re.sub(r"…(\s*…)*", "…", " ".join(template.split()))

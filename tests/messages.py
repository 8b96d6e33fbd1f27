"""Messages in the source of leanonnx, with ``…`` for their values."""

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
        yield "".join(part.value if isinstance(part, ast.Constant) else spelled(part.value) for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from templates(node.body)
        yield from templates(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for first, second in product(templates(node.left), templates(node.right)):
            yield first + second


def spelled(node: ast.expr) -> str:
    """The text that stands for a value in a message: an option as the command line spells it, or ``…``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return "…"
    texts = [str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.args]
    if node.func.id == "verb":
        return f"leanonnx {texts[0]}"
    names = ["--" + text.replace("_", "-") for text in texts]
    if node.func.id == "option_list":
        last = [str(each.value.value) for each in node.keywords if isinstance(each.value, ast.Constant)] or ["and"]
        return f"… {last[0]} …" if "…" in texts else f"{', '.join(names[:-1])} {last[0]} {names[-1]}"
    if node.func.id != "option":
        return "…"
    if texts[1:] in (["True"], ["False"]):
        return names[0] if texts[1] == "True" else names[0].replace("--", "--no-", 1)
    return " ".join([names[0], *texts[1:][-1:]])


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

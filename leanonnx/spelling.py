"""Names of parameters in messages, spelled as the caller writes them.

A library function does not know who calls it: ``option("keep", 1.5)`` is ``keep=1.5`` to a Python caller and ``--keep
1.5`` on the command line, which wraps each command in ``command_line_spelling``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Spelling = Literal["python", "command line"]
PYTHON_VERBS = {"inspect": "analyse", "calibrate-device": "calibrate_device"}
"""Names of Python functions that differ from the verb of the command line."""
_SPELLING: ContextVar[Spelling] = ContextVar("spelling", default="python")


def current_spelling() -> Spelling:
    """The spelling in force, to be handed to a process that works for the same caller."""
    return _SPELLING.get()


@contextmanager
def spelled_for(caller: Spelling) -> Iterator[None]:
    """Spell the parameters in messages that are made inside for this caller."""
    token = _SPELLING.set(caller)
    try:
        yield
    finally:
        _SPELLING.reset(token)


def option(name: str, value: object = None, text: str | None = None) -> str:
    """A parameter, or a parameter with a value.

    Args:
        name: of the parameter in Python.
        value: True and False make a flag (``--name``, ``--no-name``); None names the parameter alone.
        text: the value as typed on a command line, where that is not its plain text.
    """
    if _SPELLING.get() == "python":
        name = name.replace("-", "_")
        return name if value is None else f"{name}={_plain(value) if isinstance(value, float) else repr(value)}"
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed}" if value is None else f"--{dashed} {_plain(value) if text is None else text}"


def option_list(*names: str, last: str = "and") -> str:
    """Several parameters, listed: ``a, b and c``."""
    *others, final = (option(name) for name in names)
    return f"{', '.join(others)} {last} {final}"


def verb(name: str) -> str:
    """A command, or the Python function that does the same."""
    if _SPELLING.get() == "python":
        return f"leanonnx.{PYTHON_VERBS.get(name, name)}"
    return f"leanonnx {name}"


def call_text(name: str, *places: str, **options: object) -> str:
    """A command with its arguments, ready to be run; or the call of the Python function that does the same.

    Args:
        name: the verb.
        places: the files.
        options: parameters with their values; of several values, each gets the option, and of shapes by name too.
    """
    if _SPELLING.get() == "python":
        return f"{verb(name)}({', '.join([*map(repr, places), *(option(*each) for each in options.items())])})"
    texts = ((f"--{each.replace('_', '-')}", text) for each, value in options.items() for text in _typed(value))
    files = (f"./{place}" if place.startswith("-") else place for place in places)
    return shlex.join([*verb(name).split(), *files, *(part for pair in texts for part in pair)])


def _typed(value: object) -> list[str]:
    """The values of an option as typed, one for each time that it is given."""
    if isinstance(value, Mapping):
        return [f"{name}={','.join(map(str, shape))}" for name, shape in value.items()]
    return [_plain(each) for each in (value if isinstance(value, list | tuple) else [value])]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Options that several verbs share, and how their texts are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from leanonnx.errors import OptionError
from leanonnx.rules.table import DEFAULT, Rules
from leanonnx.userrules import read_rules

Shape = Annotated[
    list[str] | None, typer.Option("--shape", metavar="NAME=1,3,224,224", help="Size of a free graph input.")
]
RulesFile = Annotated[
    Path | None, typer.Option("--rules", metavar="R.py", help="Python file with rules of your own; it is run.")
]
Library = Annotated[
    list[Path] | None,
    typer.Option("--library", metavar="L.so", help="Library of custom operators for onnxruntime."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """``NAME=1,3,224,224`` → {NAME: (1, 3, 224, 224)}.

    Raises:
        OptionError: not of that form, or a size below 1.
    """
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if name in found:
            raise OptionError(f"--shape {name} is given twice; give one size for each input")
        try:
            found[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise OptionError(f"--shape {text}: expected NAME=1,3,224,224") from error
        if not name or min(found[name]) < 1:
            raise OptionError(f"--shape {text}: expected NAME=1,3,224,224 with sizes of at least 1")
    return found


def numbers(name: str, texts: list[str], least: int) -> tuple[int, ...]:
    """``1,8`` or several such texts → (1, 8), each number once.

    Raises:
        OptionError: not whole numbers of at least ``least``.
    """
    parts = [part for text in texts for part in text.split(",")]
    try:
        found = tuple(dict.fromkeys(int(part) for part in parts))
    except ValueError:
        found = ()
    if len(parts) and (not found or min(found) < least):
        raise OptionError(f"--{name} {','.join(texts)}: expected numbers of at least {least}, for example --{name} 1,8")
    return found


def fraction(name: str, value: float) -> float:
    """A fraction above 0 and at most 1.

    Raises:
        OptionError: out of range.
    """
    if not 0 < value <= 1:
        raise OptionError(f"--{name} {value:g}: expected a fraction above 0 and at most 1, for example --{name} 0.25")
    return value


def rules_from(path: Path | None) -> Rules:
    """``--rules R.py``: the standard rules, with those of the file where one is given."""
    return DEFAULT if path is None else read_rules(path)


def alignment(text: str) -> int | None:
    """``--align auto|N``: None for auto.

    Raises:
        OptionError: neither auto nor a number of at least 1.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--align {text}: expected auto or a number of channels of at least 1, for example --align 8")
    return int(text)


def measuring(wanted: bool, latency: float | None) -> bool:
    """Whether to measure.

    Raises:
        OptionError: a latency budget cannot be met unmeasured.
    """
    if latency is not None and not wanted:
        raise OptionError("--latency is met by measuring; leave out --no-measure")
    return wanted


def targets_file() -> Path:
    """Where measured targets are kept: ``LEANONNX_TARGETS``, or ``targets.toml`` in the user's configuration."""
    given = os.environ.get("LEANONNX_TARGETS")
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(given) if given else Path(folder) / "leanonnx" / "targets.toml"


def stored_targets() -> Path | None:
    """The file of measured targets, where there is one."""
    path = targets_file()
    return path if path.is_file() else None

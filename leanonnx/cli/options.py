"""Options that several verbs share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path

from leanonnx.errors import OptionError
from leanonnx.rules.table import DEFAULT, Rules
from leanonnx.userrules import read_rules


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

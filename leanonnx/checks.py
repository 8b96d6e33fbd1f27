"""Checks of what a user asks for; options go by their names on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, get_args

from leanonnx.errors import OptionError
from leanonnx.spelling import option, option_list

T = TypeVar("T")


def exactly_one(given: Mapping[str, T | None], example: str) -> tuple[str, T]:
    """The name and the value of the one option that was given; those that were not are None.

    Raises:
        OptionError: none was, or several.
    """
    found = [(name, value) for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise OptionError(f"give exactly one of {option_list(*given, last='or')}, for example {example}")
    return found[0]


def check_fraction(name: str, value: float) -> None:
    """A fraction is above 0 and at most 1.

    Raises:
        OptionError: out of range.
    """
    if not 0 < value <= 1:
        raise OptionError(
            f"{option(name, float(value))}: expected a fraction above 0 and at most 1, for example {option(name, 0.25)}"
        )


def check_choice(name: str, value: str, kinds: Any) -> None:
    """A choice is one of those that a ``Literal`` lists.

    Raises:
        OptionError: it is none of them.
    """
    if value not in get_args(kinds):
        raise OptionError(f"{option(name, value)}: expected one of {', '.join(get_args(kinds))}")


def check_least(name: str, value: int, least: int) -> None:
    """A number is whole and not too small.

    Raises:
        OptionError: it is neither.
    """
    if not isinstance(value, Integral) or value < least:
        raise OptionError(f"{option(name, value)}: expected a whole number of at least {least}")


def read_toml(path: Path, absent: str, broken: str) -> dict[str, Any]:
    """What a TOML file holds; ``absent`` and ``broken`` say what to do about one that cannot be read.

    Raises:
        OptionError: there is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}; {absent}") from error
    except ValueError as error:
        raise OptionError(f"{path}: not TOML: {error}; {broken}") from error

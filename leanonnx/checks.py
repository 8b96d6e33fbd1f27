"""Checks of option values; errors name the option."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from math import inf
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, get_args

from leanonnx.errors import OptionError
from leanonnx.spelling import option, option_list

Given = TypeVar("Given")


def exactly_one(given: Mapping[str, Given | None], example: str) -> tuple[str, Given]:
    """Name and value of the one option that is given; the others are None.

    Raises:
        OptionError: none is given, or several.
    """
    values = [(name, value) for name, value in given.items() if value is not None]
    if len(values) != 1:
        raise OptionError(f"give exactly one of {option_list(*given, last='or')}, for example {example}")
    return values[0]


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction outside (0, 1].

    Raises:
        OptionError: out of range.
    """
    if not 0 < value <= 1:
        raise OptionError(
            f"{option(name, float(value))}: expected a fraction above 0 and at most 1, for example {option(name, 0.25)}"
        )


def check_choice(name: str, value: str, kinds: Any) -> None:
    """Refuse a value that a ``Literal`` does not list.

    Raises:
        OptionError: the value is not listed.
    """
    if value not in get_args(kinds):
        raise OptionError(f"{option(name, value)}: expected one of {', '.join(get_args(kinds))}")


def check_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is not whole or is too small.

    Raises:
        OptionError: it is one of these.
    """
    if not isinstance(value, Integral) or value < least:
        raise OptionError(f"{option(name, value)}: expected a whole number of at least {least}")


def check_positive(name: str, value: float, example: float) -> None:
    """Refuse a number that is not finite and above 0; the error has an ``example``.

    Raises:
        OptionError: it is one of these.
    """
    if not 0 < value < inf:
        raise OptionError(
            f"{option(name, float(value))}: expected a number above 0, for example {option(name, example)}"
        )


def read_toml(path: Path, absent: str, broken: str) -> dict[str, Any]:
    """Contents of a TOML file.

    Args:
        path: of the file.
        absent: remedy to name in the error if the file cannot be read.
        broken: remedy to name in the error if it is no TOML.

    Raises:
        OptionError: the file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}; {absent}") from error
    except ValueError as error:
        raise OptionError(f"{path}: not TOML: {error}; {broken}") from error

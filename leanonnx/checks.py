"""Checks of option values; errors name the option."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, get_args

from leanonnx.errors import OptionError
from leanonnx.formatting import UNIT_SPACE
from leanonnx.spelling import option, option_list

Given = TypeVar("Given")
LEAST_PERCENTAGE, MOST_PERCENTAGE = 2, 100
"""Range of numbers that are no fraction, but likely percentages."""
MAX_INTEGER = 1 << 63
"""Integers of TOML are below, and at least the negative of it."""
DECIMAL_COMMA = re.compile(r"\d*,\d+")


def exactly_one(given: Mapping[str, Given | None], example: str) -> tuple[str, Given]:
    """Name and value of the one option that is given; the others are None.

    Raises:
        OptionError: none is given, or several.
    """
    values = [(name, value) for name, value in given.items() if value is not None]
    if len(values) != 1:
        raise OptionError(f"give exactly one of {option_list(*given, last='or')}, for example {example}")
    return values[0]


def check_fraction(name: str, value: float, hint: str = "") -> None:
    """Refuse a fraction outside (0, 1]; ``hint`` is what the error adds on what is expected.

    Raises:
        OptionError: out of range.
    """
    if LEAST_PERCENTAGE <= value <= MOST_PERCENTAGE:
        raise OptionError(
            f"{option(name, float(value))}: expected a fraction above 0 and at most 1{hint}; "
            f"for {value:g}{UNIT_SPACE}% give {option(name, f'{value:g}%')} or {option(name, value / MOST_PERCENTAGE)}"
        )
    if not 0 < value <= 1:
        raise OptionError(
            f"{option(name, float(value))}: expected a fraction above 0 and at most 1, for example {option(name, 0.25)}"
        )


def likely_share(value: float, usual: float) -> float:
    """The share that a percentage without its sign means; ``usual`` for other numbers."""
    return value / MOST_PERCENTAGE if LEAST_PERCENTAGE <= value < MOST_PERCENTAGE else usual


def read_number(name: str, given: object, expected: str, example: object, unit: str = "") -> float:
    """The number of an option as typed: ``0.5``, ``50%``, or with its unit.

    Args:
        name: of the option.
        given: a number or a text.
        expected: what the error says was expected.
        example: a value that the error shows.
        unit: that may stand behind the number, in small letters.

    Raises:
        OptionError: no number, a decimal comma, or another unit.
    """
    text = str(given).strip().lower() if isinstance(given, str | Real) and not isinstance(given, bool) else ""
    percent = text.endswith("%")
    plain = text.removesuffix("%").removesuffix(unit).strip()
    try:
        return float(plain) / (100 if percent else 1)
    except ValueError as error:
        shown = option(name, given, str(given))
        if DECIMAL_COMMA.fullmatch(plain):
            meant = option(name, float(plain.replace(",", ".")) / (100 if percent else 1))
            raise OptionError(f"{shown}: expected {expected}; write the decimal comma as a point: {meant}") from error
        raise OptionError(f"{shown}: expected {expected}, for example {option(name, example)}") from error


def read_fraction(name: str, given: object, hint: str = "") -> float:
    """A fraction as typed: ``0.5`` or ``50%``.

    Args:
        name: of the option.
        given: a number or a text.
        hint: what the error adds if it is neither.

    Raises:
        OptionError: no number, or none above 0 and at most 1.
    """
    expected = f"a fraction above 0 and at most 1{hint}"
    value = read_number(name, given, expected, 0.25)
    check_fraction(name, value, hint)
    return value


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
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        _check_integers(tables)
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}; {absent}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path}: not TOML: {error}; {broken}") from error
    return tables


def _check_integers(value: object) -> None:
    """Refuse integers that TOML does not allow, which Python reads and cannot print.

    Raises:
        ValueError: one does not fit into 64 bits.
        RecursionError: tables are nested deeper than can be read.
    """
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_integers(each)
    elif isinstance(value, int) and not -MAX_INTEGER <= value < MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")

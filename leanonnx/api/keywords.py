"""Options of a compression from the keywords of the public functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from leanonnx.api.sources import as_plan, as_samples, optional_path, several
from leanonnx.commands.compress.options import TOLERANCES, CompressOptions, alignment, asked_budget, described_options
from leanonnx.selection.metrics import BUDGETS, Budget

CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "shapes": lambda shapes: shapes or {},
    "pin": partial(several, kind=str),
    "ignore": partial(several, kind=str),
    "libraries": partial(several, kind=Path),
    "calib": as_samples,
    "teacher": optional_path,
    "align": alignment,
    "targets": optional_path,
    "plan": as_plan,
}
"""Conversions from the forms that a keyword accepts to the type of its field."""


def budget_limits(given: Mapping[str, Any]) -> dict[str, Any]:
    """The budgets among keyword arguments, by option; None for those not given."""
    return {option: given[option] for option in BUDGETS if option in given}


def budget_of(given: Mapping[str, Any]) -> Budget:
    """The budget that the arguments of ``compress`` set.

    Raises:
        OptionError: none, or several of them say how far to go.
    """
    alone = [*(given[name] for name in (*TOLERANCES, "teacher")), given["int8"] or None]
    return asked_budget(budget_limits(given), given["plan"], given["exact"], alone)


def compress_options(given: Mapping[str, Any], **others: Any) -> CompressOptions:
    """The options of a compression.

    Args:
        given: values of keywords by name; those that are no options are ignored.
        others: values of fields, taken as they are.

    Raises:
        UserError: a value is wrong, or two contradict each other.
    """
    keywords = {field.name: described.keyword or field.name for field, described in described_options()}
    names = {field.name: keywords.get(field.name, field.name) for field in fields(CompressOptions)}
    values = {
        field: CONVERSIONS[field](given[name]) if field in CONVERSIONS else given[name]
        for field, name in names.items()
        if name in given
    }
    return CompressOptions(**{**values, **others})

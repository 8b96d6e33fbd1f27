"""The options of a compression: one table, which the command line, Python and plans agree with."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from typing import Any

import pytest

import leanonnx
from leanonnx.api.keywords import CONVERSIONS
from leanonnx.cli.group import Commands
from leanonnx.commands.compress.options import CompressOptions, Described, described_options
from leanonnx.errors import OptionError
from leanonnx.selection.selector import Budget
from leanonnx.spelling import option, spelled_for

OPTIONS = {described.keyword or field.name: (field, described) for field, described in described_options()}
OWN_IN_PYTHON = {"images", "measure", "targets"}
"""Fields with a keyword of the same name that the command line spells in another way."""
BUDGETS = {"budget", "plan", "exact", "removed", "points"}
"""Fields that determine the budget, how many there are, or the channels to remove."""


def default(name: str) -> Any:
    """The default of an option."""
    field = OPTIONS[name][0]
    return field.default_factory() if field.default is MISSING else field.default  # type: ignore[misc]


def test_every_field_is_described_or_has_its_reason() -> None:
    assert {field.name for field in fields(CompressOptions)} - {field.name for field, _ in OPTIONS.values()} == (
        OWN_IN_PYTHON | BUDGETS
    )
    assert set(CONVERSIONS) <= {field.name for field in fields(CompressOptions)}


@pytest.mark.parametrize("name", OPTIONS)
def test_python_agrees(name: str) -> None:
    """The signature for editors has each option, with its default in the form that callers write."""
    field, _ = OPTIONS[name]
    parameter = inspect.signature(leanonnx.compress).parameters[name]
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert CONVERSIONS.get(field.name, lambda value: value)(parameter.default) == default(name)
    text = (inspect.getdoc(leanonnx.compress) or "").partition("Args:")[2]
    assert re.search(rf"^    (\w+, )*{name}(, \w+)*: ", text, re.MULTILINE), "the docstring does not name it"


@pytest.mark.parametrize("verb", ["compress", "sweep"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_line_agrees(name: str, verb: str) -> None:
    (found,) = [p for p in Commands()[verb].params if p.name == name]
    field, described = OPTIONS[name]
    assert found.opts == [f"--{name.replace('_', '-')}"]
    with spelled_for("command line"):
        assert found.help == re.sub(r"`(\w+)=?(\w+)?`", lambda match: option(*match.groups()), described.help)
    if field.name not in CONVERSIONS:
        assert found.default == default(name)
    assert found.metavar in (described.metavar, None) or described.metavar is None


def test_help_names_options_that_there_are() -> None:
    named = {name for _, described in OPTIONS.values() for name in re.findall(r"`(\w+)", described.help)}
    assert named and named <= set(OPTIONS)


def test_plans_record_the_options_that_shape_them() -> None:
    row = CompressOptions(budget=Budget("macs", 0.5), pin=("b", "a"), shapes={"x": (1, 3)}, freeze=True).record()
    always = {field.name for field, described in OPTIONS.values() if described.recorded}
    assert set(row) == always | {"macs", "freeze"}
    assert (row["pin"], row["shapes"], row["align"], row["freeze"]) == (["a", "b"], {"x": [1, 3]}, "auto", True)
    assert {"provider", "threads", "measure", "library", "libraries"} & set(row) == set()


def test_options_are_given_by_name_and_checked() -> None:
    with pytest.raises(TypeError):
        CompressOptions(Budget("kernels", 0.5))  # type: ignore[misc]
    for wrong in ({"provider": "tpu"}, {"threads": -1}, {"seed": -1}, {"chains": "golden"}, {"recover": "magic"}):
        with pytest.raises(OptionError, match=f"^{next(iter(wrong))}="):
            CompressOptions(**wrong)  # type: ignore[arg-type]


def test_a_latency_budget_always_measures() -> None:
    assert CompressOptions(budget=Budget("latency", 0.5)).measures
    assert not CompressOptions().measures
    assert isinstance(OPTIONS["seed"][1], Described)

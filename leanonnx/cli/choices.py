"""The options that compress and sweep share, made from the fields of ``CompressOptions``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from leanonnx.checks import read_number
from leanonnx.cli.options import (
    Layout,
    Mean,
    Preprocessor,
    Scale,
    SizeOption,
    Std,
    image_format,
    parse_shapes,
    stored_targets,
)
from leanonnx.commands.compress.options import TOLERANCES, CompressOptions, Described, alignment, described_options
from leanonnx.errors import OptionError
from leanonnx.ranking.criteria import Method
from leanonnx.selection.metrics import LATENCY, Budget
from leanonnx.spelling import option, spelled_for
from leanonnx.surgery.plan import Plan

CHOICES = "choices"
"""The parameter of a verb that stands for all of them."""
NAMED = re.compile(r"`([a-z_]+)(?:=(\w+))?`")
"""An option that a help text names."""


class Form(NamedTuple):
    """An option as typed, where that is not its type in Python: type, default, and conversion."""

    kind: Any
    default: Any
    convert: Callable[[Any], Any]


def _number_form(name: str, example: float, unit: str = "") -> Form:
    """The form of a number that may be typed in percent, or with its unit."""

    def convert(text: str | None) -> float | None:
        return None if text is None else read_number(name, text, "a number", example, unit)

    return Form(str | None, None, convert)


REPEATED = Form(list[str] | None, None, lambda texts: tuple(texts or ()))
FORMS = {
    "method": Form(Method, "auto", str),
    "shapes": Form(list[str] | None, None, lambda texts: parse_shapes(texts or [])),
    "pin": REPEATED,
    "ignore": REPEATED,
    "libraries": REPEATED._replace(kind=list[Path] | None),
    "calib": Form(Path | None, None, lambda path: path),
    "score": Form(str | None, None, lambda text: text),
    "align": Form(str, "auto", alignment),
    "min_agreement": _number_form("min_agreement", 0.99),
    "max_deviation": _number_form("max_deviation", 0.02),
    "min_psnr": _number_form("min_psnr", 40, "db"),
    "max_drop": _number_form("max_drop", 0.01),
}
NoMeasure = Annotated[bool, typer.Option("--no-measure", help="Do not measure latency.")]
AFTER: Mapping[str, tuple[tuple[str, Any, Any], ...]] = {
    "calib": (
        ("mean", Mean, "0"),
        ("std", Std, "1"),
        ("scale", Scale, 255),
        ("layout", Layout, "auto"),
        ("size", SizeOption, None),
        ("preprocessor", Preprocessor, None),
    ),
    "best_effort": (("no_measure", NoMeasure, False),),
}
"""Options that only the command line has, as name, type and default, by the field that they follow."""


@dataclass(frozen=True)
class Choices:
    """The values of the shared options, as typed, by name."""

    typed: Mapping[str, Any]

    @property
    def alone(self) -> list[Any]:
        """The values of the options that need no budget; None for those not given."""
        return [*(self.typed[name] for name in (*TOLERANCES, "teacher")), self.typed["int8"] or None]

    def options(self, budget: Budget, plan: Plan | None = None, exact: bool = False) -> CompressOptions:
        """The options of a compression.

        Raises:
            OptionError: a text is malformed, or two options contradict each other.
        """
        typed = self.typed
        if typed["no_measure"] and budget.metric.measured:
            raise OptionError(f"{option('latency')} is met by measuring; leave out {option('measure', False)}")
        if typed["no_measure"] and typed["minimise"] == LATENCY:
            raise OptionError(f"{option('minimise', LATENCY)} needs its time; leave out {option('measure', False)}")
        values = {field.name: _form(field).convert(typed[_name(field, each)]) for field, each in described_options()}
        return CompressOptions(
            budget=budget,
            plan=plan,
            exact=exact,
            targets=stored_targets(),
            measure=not typed["no_measure"],
            images=image_format(*(typed[name] for name, _, _ in AFTER["calib"])),
            **values,
        )


def with_choices(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each shared option as a parameter of its own, in the place of ``choices``."""
    shared = list(_parameters())

    @wraps(verb)
    def with_all_options(**given: Any) -> None:
        verb(**{CHOICES: Choices({parameter.name: given.pop(parameter.name) for parameter in shared})}, **given)

    whole = signature(verb, eval_str=True)
    own = [[each.replace(kind=Parameter.KEYWORD_ONLY)] for each in whole.parameters.values()]
    parameters = [each for group in own for each in (shared if group[0].name == CHOICES else group)]
    with_all_options.__signature__ = whole.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_all_options


def _parameters() -> Iterator[Parameter]:
    """Each shared option as a parameter that typer reads."""
    hints = get_type_hints(CompressOptions)
    for field, described in described_options():
        kind = _form(field).kind or hints[field.name]
        flag = [f"--{field.name.replace('_', '-')}"] if kind is bool else []
        read = typer.Option(*flag, help=_help(described), metavar=described.metavar, min=described.least)
        yield _parameter(_name(field, described), Annotated[kind, read], _form(field).default)
        for each in AFTER.get(field.name, ()):
            yield _parameter(*each)


def _parameter(name: str, kind: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _form(field: Field[Any]) -> Form:
    """The form of an option; that of its field where it is typed as in Python."""
    default = None if field.default is MISSING else field.default
    return FORMS.get(field.name, Form(None, default, lambda value: value))


def _name(field: Field[Any], described: Described) -> str:
    return described.keyword or field.name


def _help(described: Described) -> str:
    """The help of an option, which names other options as they are typed."""
    with spelled_for("command line"):
        return NAMED.sub(lambda match: option(*match.groups()), described.help)

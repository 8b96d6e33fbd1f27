"""The options of the budgets, one for each metric that an option limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import typer

from leanonnx.selection.metrics import BUDGETS, Metric

LIMITS = "limits"
"""The parameter of a verb that stands for all of these options: their values by option."""
OptionKind = Callable[[Metric], Any]
"""The annotation of the option of a metric."""


def with_budgets(kind: OptionKind, metrics: Iterable[Metric] = BUDGETS.values()) -> Callable[..., Any]:
    """Give a verb the option of each metric, in the place of its parameter ``limits``.

    In its docstring, ``{limits}`` and ``{any limit}`` become the list of these options, with commas and with "or".
    """
    options = {metric.option: metric for metric in metrics}
    *others, last = names = [f"--{option}" for option in options]
    texts = {"{limits}": ", ".join(names), "{any limit}": f"{', '.join(others)} or {last}"}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @wraps(verb)
        def with_limits(**given: Any) -> None:
            verb(**{LIMITS: {option: given.pop(option) for option in options}}, **given)

        parameters: list[Parameter] = []
        for each in signature(verb, eval_str=True).parameters.values():
            if each.name != LIMITS:
                parameters.append(each.replace(kind=Parameter.KEYWORD_ONLY))
                continue
            for option, metric in options.items():
                annotation = kind(metric)
                parameters.append(Parameter(option, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
        for mark, text in texts.items():
            with_limits.__doc__ = (with_limits.__doc__ or "").replace(mark, text)
        with_limits.__signature__ = signature(verb).replace(parameters=parameters)  # type: ignore[attr-defined]
        return with_limits

    return decorate


def limit_option(metric: Metric) -> Any:
    """The option of ``compress`` that limits a metric."""
    return Annotated[str | None, typer.Option(metavar=metric.metavar, help=metric.help)]


def fractions_option(metric: Metric) -> Any:
    """The option of ``sweep`` that lists fractions of a metric."""
    return Annotated[str | None, typer.Option(metavar="F,…", help=metric.sweep_help)]


def step_option(metric: Metric) -> Any:
    """The option of ``finetune`` that limits a metric after the last step."""
    text = f"With --steps: keep this fraction of BASE's {metric.noun}."
    return Annotated[str | None, typer.Option(metavar="F", help=text)]

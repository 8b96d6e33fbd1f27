"""Habits that all verbs share: options in groups, options from a file."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from leanonnx.cli.config import ConfigFile

CONFIG = "config"
"""The parameter that every verb gets: the file of options, or the context in which it was read."""
PANELS = {
    "How far to go": "keep macs params latency bytes plan exact min_agreement max_deviation min_psnr score max_drop "
    "minimise best_effort steps",
    "Limits": "max_latency_ms min_speedup max_bytes max_params max_macs gates",
    "What is removed, and how": "method chains pin ignore blocks align target rules freeze unshare int8",
    "Data": "calib data mean std scale layout size preprocessor",
    "Recovery": "teacher recover effort minutes device",
    "Training": "strategy train hold epochs patience lr finetune.batch augment amp checkpoint resume",
    "Measurements of physics": "operator adjoint mask measurement loss_share pairing",
    "Where it runs": "provider threads batch library cuda_graph tf32 skip_missing_provider shape seed seconds"
    " no_measure prove_twice",
    "Files and output": "quiet verbose plan_out plan_weights report_out keep_steps out save_models restart"
    " junit github jobs dask",
}
"""Groups of options in the help of a verb, by the names of their parameters (those of one verb only: verb.name)."""
GROUPED_FROM = 12
"""Number of options from which the help of a verb is shown in groups."""
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names.split()}
RIVALS = ("keep", "macs", "params", "latency", "bytes", "plan", "exact")
"""Options of which one on the command line takes the place of any other in the file."""


def with_habits(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with ``--config``, and with its options in groups if they are many."""
    whole = signature(verb, eval_str=True)
    own = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in whole.parameters.values()]
    config = Parameter(CONFIG, Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)
    last = own.pop() if own[-1].name == "as_json" else None
    parameters = [*own, config, *([last] if last else [])]

    @wraps(verb)
    def with_config(**given: Any) -> None:
        verb(**without_rivals(given, given.pop(CONFIG)))

    if sum(isinstance(get_args(each.annotation)[1], OptionInfo) for each in parameters) >= GROUPED_FROM:
        parameters = [_in_panel(each, verb.__name__.removesuffix("_command")) for each in parameters]
    with_config.__signature__ = whole.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_config


def without_rivals(given: dict[str, Any], context: typer.Context | None) -> dict[str, Any]:
    """The values of options, less those in the file that one on the command line takes the place of.

    Args:
        given: values by parameter.
        context: in which the file was read; None without a file.
    """
    if context is None:
        return given
    typed = [name for name in RIVALS if name in given and _is_typed(context, name)]
    others = [name for name in RIVALS if name in given and name not in typed] if typed else []
    return {**given, **{name: False if isinstance(given[name], bool) else None for name in others}}


def _is_typed(context: typer.Context, name: str) -> bool:
    """True if an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _in_panel(parameter: Parameter, verb: str) -> Parameter:
    """The parameter with its group in the help of a verb."""
    kind, info = get_args(parameter.annotation)
    if not isinstance(info, OptionInfo):
        return parameter
    info = copy(info)
    info.rich_help_panel = PANEL_OF.get(f"{verb}.{parameter.name}", PANEL_OF.get(parameter.name))
    return parameter.replace(annotation=Annotated[kind, info])

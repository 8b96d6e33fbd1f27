"""Habits of the command line that all verbs share: options in groups, options from a file, plain errors."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup
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

UsageError: Any = typer.BadParameter.__base__
"""The error of typer's parser about a command line, which typer does not export."""
PLAIN = {
    "Value error, ": "",
    "Input should be a valid number, unable to parse string as a number": "expected a number, for example 0.5",
    "Input should be a valid integer, unable to parse string as an integer": "expected a whole number, for example 8",
}
"""Words of the option parser, and ours for them."""

OTHER_NAMES = {
    "keep": "amount budget keep-ratio prune-ratio pruning-ratio ratio sparsity target-sparsity",
    "macs": "budget flops ratio pruning-ratio",
    "params": "budget parameters",
    "bytes": "budget file-size max-size model-size",
    "latency": "budget speed speedup time",
    "calib": "calibration calibration-data calibration-dataset dataset input-data inputs samples",
    "data": "calib dataset eval-data input-data inputs samples",
    "int8": "quant quantise quantize quantization",
    "shape": "input-shape input-shapes overwrite-input-shape test-input-shape",
    "provider": "ep execution-provider gpu",
    "max-deviation": "atol rtol tolerance",
    "min-agreement": "accuracy max-accuracy-drop",
    "report": "html",
}
"""Options, and what other tools call them."""
NEEDLESS = {
    "the output is the last argument": ("output", "output-model", "o"),
    "an output that is there already is replaced": ("force", "overwrite", "f", "y", "yes"),
}
"""What makes an option of other tools needless."""


class LeanGroup(TyperGroup):
    """The group of all verbs: their help is drawn in panels, errors stay plain lines."""

    def main(self, *args: Any, **given: Any) -> Any:
        """Run a verb."""
        self.rich_markup_mode = None  # of the group alone, which prints the errors; each verb has its own
        return super().main(*args, **given)

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """Find a verb; the error about an unknown one lists those that there are."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            error.message = f"{error.message.rstrip('.')}; the commands are {', '.join(self.list_commands(ctx))}"
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; errors about the type of a value are put in the words of all others."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            for theirs, ours in PLAIN.items():
                error.message = error.message.replace(theirs, ours)
            raise
        except UsageError as error:
            if hasattr(error, "possibilities"):
                _name_ours(error)
            raise


def _name_ours(error: Any) -> None:
    """Put into an error about an unknown option what it is called here."""
    word = error.option_name.lstrip("-")
    known = {name for parameter in error.ctx.command.params for name in parameter.opts}
    ours = [f"--{name}" for name, others in OTHER_NAMES.items() if word in others.split() and f"--{name}" in known]
    error.possibilities = ours or error.possibilities
    for reason, words in NEEDLESS.items():
        if word in words:
            error.message, error.possibilities = f"{error.message}: {reason}", None


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

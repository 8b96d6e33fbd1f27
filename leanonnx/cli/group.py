"""The verbs, and the group that runs them: its help needs none of them, errors are plain lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from leanonnx.cli.habits import with_habits
from leanonnx.cli.terminal import exit_codes


@dataclass(frozen=True)
class Verb:
    """A verb: its module in this package, and its short help."""

    module: str
    summary: str

    def function(self, name: str) -> Callable[..., None]:
        """Import the function that carries out the verb of this name."""
        module = import_module(f"{__package__}.{self.module}")
        return with_habits(getattr(module, f"{name.replace('-', '_')}_command"))


VERBS = {
    "compress": Verb("compress", "Prune a model to a budget or a tolerance, and prove the result."),
    "inspect": Verb("inspect", "Show layers, pins with their reasons, and costs."),
    "sweep": Verb("sweep", "Compress models to several budgets: the trade-off curve."),
    "bench": Verb("bench", "Time a model, or two in turns."),
    "check": Verb("check", "Compare a model with its baseline by gates, for CI."),
    "calibrate-device": Verb("calibrate", "Measure this machine, and store it as a target."),
    "finetune": Verb("finetune", "Train the weights of a compressed model."),
}
"""The verbs by name, in the order of the help."""

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


class Commands(Mapping[str, Any]):
    """The commands of all verbs; each is imported when it is first asked for."""

    def __getitem__(self, name: str) -> Any:
        return command_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


@cache
def command_of(name: str) -> Any:
    """The command of a verb, with its options.

    Raises:
        KeyError: there is no such verb.
    """
    verb = VERBS[name]
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    alone.command(name, short_help=verb.summary)(verb.function(name))
    return typer.main.get_command(alone)


class LeanGroup(TyperGroup):
    """The group of all verbs: their help is drawn in panels, errors stay plain lines."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "commands": {}})
        self.commands: Any = Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The name and the short help of a verb, which is not imported for it; None if there is no such verb."""
        verb = VERBS.get(cmd_name)
        return verb and TyperCommand(cmd_name, short_help=verb.summary)

    def main(self, *args: Any, **given: Any) -> Any:
        """Run a verb."""
        self.rich_markup_mode = None  # of the group alone, which prints the errors; each verb has its own
        return super().main(*args, **given)

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """Find a verb; the error about an unknown one lists those that there are."""
        try:
            name, _, rest = super().resolve_command(ctx, args)
        except UsageError as error:
            error.message = f"{error.message.rstrip('.')}; the commands are {', '.join(self.list_commands(ctx))}"
            raise
        with exit_codes():
            return name, self.commands[name], rest

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; errors about the type of a value are put in the words of all others."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            for theirs, ours in PLAIN.items():
                error.message = error.message.replace(theirs, ours)
            raise
        except UsageError as error:
            if hasattr(error, "option_name"):
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

"""Entry point of the ``leanonnx`` command."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

import typer

from leanonnx.cli.bench import bench_command
from leanonnx.cli.calibrate import calibrate_device_command
from leanonnx.cli.check import check_command
from leanonnx.cli.compress import compress_command
from leanonnx.cli.finetune import finetune_command
from leanonnx.cli.habits import LeanGroup, with_habits
from leanonnx.cli.inspect import inspect_command
from leanonnx.cli.options import AsJson
from leanonnx.cli.sweep import sweep_command
from leanonnx.cli.terminal import claim_stdout, clean_up_when_stopped, exit_codes, show_json, show_text
from leanonnx.errors import NO_MEMORY, USER_ERROR
from leanonnx.runtime.versions import installed_versions, versions_text

COMPLETING = "_LEANONNX_COMPLETE"
"""Environment variable by which shells ask for completions."""

app = typer.Typer(
    name="leanonnx",
    help="Make deployed convolutional networks smaller: prune an ONNX model by LEAN, prove the result.",
    cls=LeanGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
VERBS = (
    ("compress", compress_command, "Prune a model to a budget or a tolerance, and prove the result."),
    ("inspect", inspect_command, "Show layers, pins with their reasons, and costs."),
    ("sweep", sweep_command, "Compress models to several budgets: the trade-off curve."),
    ("bench", bench_command, "Time a model, or two in turns."),
    ("check", check_command, "Compare a model with its baseline by gates, for CI."),
    ("calibrate-device", calibrate_device_command, "Measure this machine, and store it as a target."),
    ("finetune", finetune_command, "Train the weights of a compressed model."),
)
"""Name, function and short help of each verb, in the order of the help."""
for _name, _verb, _summary in VERBS:
    app.command(_name, short_help=_summary)(with_habits(_verb))


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the versions of leanonnx and of what it runs on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    if version:
        with exit_codes() as results:
            row = installed_versions()
            show_json(row, results) if as_json else show_text(versions_text(row), results)
        raise typer.Exit
    if as_json:
        raise typer.BadParameter("give it behind the verb, or with --version", param_hint="--json")
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


def main() -> None:
    """Run the command line."""
    if COMPLETING in os.environ:
        os.environ["TERMINAL_WIDTH"] = "1000"  # else help is wrapped, and fish takes each line for a candidate
    gc.disable()  # one run makes no garbage worth sweeping over a large graph again and again
    claim_stdout()
    clean_up_when_stopped()
    try:
        app()
    except MemoryError:  # before a verb was reached
        sys.stderr.write(f"leanonnx: {NO_MEMORY}\n")
        sys.exit(USER_ERROR)

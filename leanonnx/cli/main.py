"""Entry point of the ``leanonnx`` command."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

import typer

from leanonnx.cli.group import LeanGroup
from leanonnx.cli.terminal import AsJson, claim_stdout, clean_up_when_stopped, exit_codes, show_json, show_text
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

"""Entry point of the ``leanonnx`` command."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from leanonnx.cli.bench import bench
from leanonnx.cli.calibrate import calibrate_device
from leanonnx.cli.check import check
from leanonnx.cli.compress import compress
from leanonnx.cli.finetune import finetune
from leanonnx.cli.inspect import inspect
from leanonnx.cli.terminal import claim_stdout, clean_up_when_stopped
from leanonnx.version import __version__

app = typer.Typer(
    name="leanonnx",
    help="Make deployed convolutional networks smaller: prune an ONNX model by LEAN, prove the result.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(compress)
app.command()(inspect)
app.command()(bench)
app.command()(check)
app.command()(calibrate_device)
app.command()(finetune)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leanonnx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    gc.disable()  # one run makes no garbage worth sweeping over a large graph again and again
    claim_stdout()
    clean_up_when_stopped()
    app()

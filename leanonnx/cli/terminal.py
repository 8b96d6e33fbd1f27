"""Where results and messages go, and how errors become exit codes.

Results go to stdout, everything else to stderr.  Native libraries write warnings straight to file descriptor 1, so
the entry point keeps the real stdout for itself and points descriptor 1 at stderr.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import rich.progress
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from leanonnx.errors import BUG, NO_MEMORY, USER_ERROR, LeanOnnxError, OutputError
from leanonnx.reporting.encoding import to_json
from leanonnx.system.clock import Progress, quiet

WIDTH = 140
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""
TERMINATED = 143


def claim_stdout() -> None:
    """Keep stdout for results alone."""
    try:
        results = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    except OSError:  # the caller closed stdout or stderr: nobody wants the result
        results = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    sys.stdout = results


def clean_up_when_stopped() -> None:
    """Let a stop from outside (SIGTERM, a closed terminal) run the same clean-up as an error."""

    def stop(*_: object) -> None:
        raise SystemExit(TERMINATED)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


def command_line() -> str:
    """The command as it was given, for a shell."""
    return shlex.join(["leanonnx", *sys.argv[1:]])


def show(renderable: RenderableType, results: TextIO) -> None:
    """Print a result for people."""
    console = Console(file=io.StringIO(), width=None if results.isatty() else WIDTH, force_terminal=results.isatty())
    with console.capture() as capture:
        console.print(renderable)
    _print(capture.get(), results)


def show_text(text: str, results: TextIO) -> None:
    """Print a result that has no form."""
    _print(text + "\n", results)


def show_json(report: object, results: TextIO) -> None:
    """Print a report as one JSON object."""
    show_text(json.dumps(to_json(report), indent=1), results)


def _print(text: str, results: TextIO) -> None:
    """Write to stdout; a reader that has gone away is no error.

    Raises:
        OutputError: stdout cannot take the result.
    """
    try:
        results.write(text)
        results.flush()
    except BrokenPipeError:
        _silence(results)
    except OSError as error:
        _silence(results)
        raise OutputError(f"the result cannot be printed: {error.strerror}; send stdout elsewhere") from error


def _silence(results: TextIO) -> None:
    """Send what is left to be written nowhere, so that the exit is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, results.fileno())
    os.close(nowhere)


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr that names the stage, and fills where it is known how much is done; silent off a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield quiet
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with rich.progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(stage: str, done: float | None = None) -> None:
            bars.update(task, description=stage, total=None if done is None else 1.0, completed=done or 0.0)

        yield show


@contextmanager
def exit_codes(interrupted: str = "nothing was written") -> Iterator[TextIO]:
    """Turn exceptions into a message on stderr and the exit code of their kind.

    Gives the stream for results; whatever else libraries print goes to stderr.  ``interrupted`` says what a Ctrl-C
    leaves behind.
    """
    results = sys.stdout
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # what libraries warn their callers of is none of the user's concern
            yield results
    except LeanOnnxError as error:
        _stop(f"leanonnx: {error}", error.code, error)
    except KeyboardInterrupt as error:
        _stop(f"leanonnx: interrupted; {interrupted}", INTERRUPTED, error)
    except MemoryError as error:
        _stop(f"leanonnx: {NO_MEMORY}", USER_ERROR, error)
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:  # noqa: BLE001 - the last place where a bug can be told
        lines = "".join(traceback.format_exception(error)[-3:])
        _stop(f"leanonnx: a bug in leanonnx, please report it with the model's operators:\n{lines}", BUG, error)


def _stop(message: str, code: int, error: BaseException) -> None:
    sys.stderr.write(message + "\n")
    raise typer.Exit(code) from (error if isinstance(error, LeanOnnxError) else None)

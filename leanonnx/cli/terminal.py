"""Output of results and messages, and exit codes for errors.

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
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Annotated, TextIO

import typer
from rich.console import Console, RenderableType

from leanonnx.errors import BUG, NO_MEMORY, USER_ERROR, LeanOnnxError, OutputError
from leanonnx.graph.model import raise_if_machine_failed
from leanonnx.reporting.bars import progress_bar
from leanonnx.reporting.encoding import to_json
from leanonnx.runtime.sessions import RunFailed, claim_process
from leanonnx.spelling import spelled_for
from leanonnx.system.clock import Progress, ProgressLines, ignore_progress, ticking

WIDTH = 160
"""Width of tables off a terminal, in characters."""
QUIET_SECONDS, LINE_SECONDS, TICK_SECONDS = 10.0, 30.0, 1.0
"""Off a terminal: time before the first line on progress, between two lines on a stage, and between looks at them."""
INTERRUPTED = 130
"""Exit code of shells after SIGINT, 128 + 2."""
TERMINATED = 143
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def claim_stdout() -> None:
    """Reserve stdout for results."""
    try:
        results = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    except OSError:  # the caller closed stdout or stderr: nobody wants the result
        results = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    sys.stdout = results


def clean_up_when_stopped() -> None:
    """Clean up after SIGTERM and a closed terminal as after an error."""

    def stop(*_: object) -> None:
        raise SystemExit(TERMINATED)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


def command_line() -> str:
    """The command that is running, quoted for a shell."""
    return shlex.join(["leanonnx", *sys.argv[1:]])


def show(renderable: RenderableType, results: TextIO) -> None:
    """Print tables."""
    console = Console(file=io.StringIO(), width=None if results.isatty() else WIDTH, force_terminal=results.isatty())
    with console.capture() as capture:
        console.print(renderable, crop=False)
    _print(capture.get(), results)


def show_text(text: str, results: TextIO) -> None:
    """Print plain text."""
    _print(text + "\n", results)


def show_json(report: object, results: TextIO) -> None:
    """Print a report as one JSON object."""
    show_text(json.dumps(to_json(report), indent=1), results)


def _print(text: str, results: TextIO) -> None:
    """Write to stdout; a closed pipe is no error.

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
    """Discard buffered output, so that the exit prints no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, results.fileno())
    os.close(nowhere)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Yield a listener that shows stages and their progress on stderr: a bar, or lines off a terminal."""
    console = Console(stderr=True)
    if quiet:
        yield ignore_progress
    elif console.is_terminal:
        with progress_bar(console) as bar:
            yield bar
    else:
        lines = ProgressLines(_print_line, QUIET_SECONDS, LINE_SECONDS)
        with ticking(lines.tick, TICK_SECONDS):
            yield lines


def _print_line(text: str) -> None:
    """Write a line to stderr; one that takes none is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@contextmanager
def exit_codes(interrupted: str = "nothing was written") -> Iterator[TextIO]:
    """Turn exceptions into a message on stderr and the exit code of their kind.

    Yields the stream for results; anything else that libraries print goes to stderr. Messages spell options as typed.

    Args:
        interrupted: what the message after Ctrl-C says about results.
    """
    results = sys.stdout
    claim_process()
    try:
        with spelled_for("command line"), warnings.catch_warnings(), redirect_stdout(sys.stderr), _machine_errors():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # warnings for programmers, not for users
            yield results
    except LeanOnnxError as error:
        _stop(f"leanonnx: {error}", error.code, error)
    except KeyboardInterrupt as error:
        _stop(f"leanonnx: interrupted; {interrupted}", INTERRUPTED, error)
    except MemoryError as error:
        _stop(f"leanonnx: {NO_MEMORY}", USER_ERROR, error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"leanonnx: {place}{error.strerror or error}; check the disk and the permissions", USER_ERROR, error)
    except RunFailed as error:
        _stop(
            f"leanonnx: onnxruntime fails on a model that it could run: {error}; check the disk, and report it if that "
            "is sound",
            USER_ERROR,
            error,
        )
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:  # noqa: BLE001 - the last place where a bug can be reported
        lines = "".join(traceback.format_exception(error)[-3:])
        _stop(f"leanonnx: a bug in leanonnx, please report it with the model's operators:\n{lines}", BUG, error)


@contextmanager
def _machine_errors() -> Iterator[None]:
    """Tell an error of any library that comes from the machine, such as PyTorch's without memory, from a bug."""
    try:
        yield
    except RuntimeError as error:
        raise_if_machine_failed(error)
        raise


def _stop(message: str, code: int, error: BaseException) -> None:
    sys.stderr.write(message + "\n")
    raise typer.Exit(code) from (error if isinstance(error, LeanOnnxError) else None)

"""``leanonnx check BASE NEW``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from leanonnx.cli.options import (
    Batches,
    Layout,
    Library,
    Mean,
    Preprocessor,
    Quiet,
    Scale,
    Seconds,
    SizeOption,
    Std,
    ThreadCounts,
    TimedShape,
    image_format,
    numbers,
    parse_shapes,
)
from leanonnx.cli.terminal import AsJson, exit_codes, progress, show, show_json
from leanonnx.commands.bench import benchmark
from leanonnx.commands.check.check import CheckRequest
from leanonnx.commands.check.check import run_check as compare
from leanonnx.commands.check.ci import CHECK_TITLE, github_command, github_lines, github_summary, junit_xml
from leanonnx.commands.check.gates import (
    AGREEMENT,
    DEVIATION,
    DROP,
    GATES,
    LATENCY_MS,
    LIMITED_GATES,
    MACS,
    PARAMS,
    PSNR,
    SIZE,
    SPEEDUP,
    GateLimit,
    read_gates,
    read_limit,
)
from leanonnx.commands.check.report import check_report
from leanonnx.commands.check.revisions import model_file
from leanonnx.commands.check.rows import CheckReport
from leanonnx.commands.check.tables import check_tables
from leanonnx.commands.check.texts import verdict_text
from leanonnx.errors import GateFailed, OutputError, UserError
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.system.outputs import check_writable, write_file

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Environment variable that names the file of a job's summary on GitHub."""

Gates = Annotated[
    Path | None, typer.Option(metavar="G.toml", help="Limits by the same names; the command line goes first.")
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="DATA", help="Real inputs, as for compress --calib; without, both models get random ones."),
]
ScoreFunctionName = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="A function of a model's path and of the samples, as for compress; for --max-drop; it is run.",
    ),
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing-provider", help="Skip the gates on latency where --provider is not there.")
]
JUnit = Annotated[Path | None, typer.Option(metavar="R.xml", help="Write a JUnit report here.")]
GitHub = Annotated[bool, typer.Option("--github", help=f"Annotate on stderr for GitHub, and add to ${SUMMARY}.")]


def _gate(name: str, metavar: str) -> Any:
    """The option of a gate."""
    sense = "At least" if GATES[name].least else "At most"
    return typer.Option(f"--{name}", metavar=metavar, show_default=False, help=f"{sense}: {GATES[name].meaning}.")


def check_command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The baseline: a file, or REV:PATH in git.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The candidate that is to replace it.")],
    max_deviation: Annotated[str | None, _gate(DEVIATION, "F")] = None,
    min_agreement: Annotated[str | None, _gate(AGREEMENT, "F")] = None,
    min_psnr: Annotated[str | None, _gate(PSNR, "DB")] = None,
    max_drop: Annotated[str | None, _gate(DROP, "F")] = None,
    score: ScoreFunctionName = None,
    min_speedup: Annotated[str | None, _gate(SPEEDUP, "F")] = None,
    max_latency_ms: Annotated[str | None, _gate(LATENCY_MS, "MS")] = None,
    max_bytes: Annotated[str | None, _gate(SIZE, "N|Fx")] = None,
    max_params: Annotated[str | None, _gate(PARAMS, "N|Fx")] = None,
    max_macs: Annotated[str | None, _gate(MACS, "N|Fx")] = None,
    gates: Gates = None,
    data: Data = None,
    mean: Mean = "0",
    std: Std = "1",
    scale: Scale = 255,
    layout: Layout = "auto",
    size: SizeOption = None,
    preprocessor: Preprocessor = None,
    provider: Annotated[Provider, typer.Option(help="Where latency is measured.")] = "cpu",
    skip_missing_provider: SkipMissing = False,
    threads: ThreadCounts = None,
    batch: Batches = None,
    shape: TimedShape = None,
    seconds: Seconds = 3.0,
    library: Library = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the inputs and of the interval.")] = 0,
    junit: JUnit = None,
    github: GitHub = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare a candidate model with its baseline and fail if a gate is violated.

    Always checked: validity, interface, that it runs, NaN and infinity, determinism, denormal weights. Exit codes:
    0 passed, 1 a gate failed (a broken NEW included), 2 wrong file or option, 3 a bug.
    """
    typed = locals()
    given = {name: typed[name.replace("-", "_")] for name in LIMITED_GATES}
    with (
        exit_codes() as results,
        _error_annotations(new, github),
        model_file(base) as base_path,
        model_file(new) as new_path,
    ):
        for path in (base_path, new_path):
            check_writable(path, junit)
        request = CheckRequest(
            limits=_limits(gates, given),
            data=data,
            score=score,
            images=image_format(mean, std, scale, layout, size, preprocessor),
            timed=benchmark.BenchRequest(
                shapes=parse_shapes(shape or []),
                batches=numbers("batch", batch or []),
                threads=numbers("threads", threads or []) or (0,),
                setting=Setting(provider),
                libraries=tuple(library or ()),
                seconds=seconds,
                seed=seed,
            ),
            skip_missing=skip_missing_provider,
        )
        with progress(quiet) as listener:
            outcome = compare(base_path, new_path, request, listener)
        report = check_report(base, new, request, outcome)
        show_json(report, results) if as_json else show(check_tables(report), results)
        _report_to_ci(report, junit, github)
        if outcome.failed_gates:
            raise GateFailed(verdict_text(report))


def _limits(gates: Path | None, given: dict[str, str | None]) -> dict[str, GateLimit]:
    asked = {name: read_limit(name, text, f"--{name}") for name, text in given.items() if text is not None}
    return (read_gates(gates) if gates else {}) | asked


@contextmanager
def _error_annotations(new: str, github: bool) -> Iterator[None]:
    """Annotate for GitHub an error that keeps the gates from being checked."""
    try:
        yield
    except UserError as error:
        if github:
            _print([github_command("error", CHECK_TITLE, new, str(error))])
        raise


def _report_to_ci(report: CheckReport, junit: Path | None, github: bool) -> None:
    """Write the JUnit report and the annotations for GitHub that were asked for."""
    if junit:
        write_file(junit, junit_xml(report))
    if github:
        _report_to_github(report)


def _report_to_github(report: CheckReport) -> None:
    """Write annotations for GitHub, and the summary of the job where GitHub names its file.

    Raises:
        OutputError: the summary cannot be written.
    """
    _print(github_lines(report))
    summary = os.environ.get(SUMMARY)
    if summary:
        try:
            with open(summary, "a", encoding="utf-8", errors="replace") as file:
                file.write(github_summary(report))
        except OSError as error:
            raise OutputError(f"${SUMMARY}: {summary}: cannot be written: {error.strerror}; unset it") from error


def _print(lines: Sequence[str]) -> None:
    """Write to stderr, which GitHub reads too, so that stdout holds results only."""
    sys.stderr.writelines(f"{line}\n" for line in lines)

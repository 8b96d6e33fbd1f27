"""``leanonnx calibrate-device``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanonnx.cli.options import Quiet, targets_file
from leanonnx.cli.terminal import AsJson, exit_codes, progress, show, show_json
from leanonnx.commands.calibrate import calibrate
from leanonnx.commands.calibrate.report import calibration_report
from leanonnx.commands.calibrate.tables import calibration_tables
from leanonnx.runtime.providers import Provider, Setting


def calibrate_device_command(
    provider: Annotated[Provider, typer.Option(help="Where models are to run.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Threads within an operator; 0 is all physical cores.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Where to store the table, next to others in it."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure which widths this machine runs at full speed and what work costs on it, and store that as a target.

    Takes less than a minute on a CPU. The table is stored in $LEANONNX_TARGETS, or else leanonnx/targets.toml in the
    user's configuration folder; compress uses it from then on where --target is auto or names it. A file given with
    --out is used where $LEANONNX_TARGETS names it. Exit codes: 0 stored, 2 wrong option (a provider that is not there
    included), 3 a bug.
    """
    with exit_codes() as results:
        path = out or targets_file()
        calibrate.check_storable(path)
        with progress(quiet) as listener:
            calibration = calibrate.run_calibration(Setting(provider, threads), listener)
        calibrate.store_table(calibration.target, path)
        report = calibration_report(calibration, path, targets_file())
        show_json(report, results) if as_json else show(calibration_tables(report), results)

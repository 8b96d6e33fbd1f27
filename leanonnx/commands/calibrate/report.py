"""What is told of a calibration: plain data for JSON, a table for people, each entry with what it means."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.calibrate.calibrate import Calibration
from leanonnx.formatting import counted
from leanonnx.hardware.targets import ENTRIES
from leanonnx.reporting.report import SCHEMA, Row, warned
from leanonnx.runtime.providers import runtime_version
from leanonnx.spelling import option
from leanonnx.system.cores import processor

READ = "block, multiple and grouped are read from onnxruntime's optimised graphs, all else is timed"
FOUND = "block and multiple are found by timing widths, grouped is taken to be multiple"


def summary(found: Calibration, path: Path, usual: Path) -> Row:
    """The JSON object of ``leanonnx calibrate-device``; ``usual`` is the file that ``--target auto`` reads."""
    entries = {
        key: {
            "measured": getattr(found.target, key),
            "built_in": getattr(found.built_in, key),
            "unit": entry.unit,
            "meaning": entry.meaning,
        }
        for key, entry in ENTRIES.items()
    }
    return {
        "schema": SCHEMA,
        "target": found.target.name,
        "file": str(path),
        "used_by_auto": path.resolve() == usual.resolve(),
        "provider": found.setting.provider,
        "threads": found.setting.threads,
        "onnxruntime": runtime_version(),
        "processor": processor(),
        "steps": "timed" if found.timed_steps else "read",
        "entries": entries,
        "checks": [_check(found, index) for index in range(len(found.forecasts))],
        "seconds": round(found.seconds, 1),
        "warnings": list(found.warnings),
    }


def _check(found: Calibration, index: int) -> Row:
    check = found.forecasts[index]
    names = ("measured", "predicted", "error", "built_in", "built_in_error")
    return {"network": check.network, **{name: round(getattr(check, name), 4) for name in names}}


def tables(row: Row) -> RenderableType:
    """``leanonnx calibrate-device`` for people."""
    threads = counted(row["threads"], "thread")
    head = f"{row['target']}: {row['provider']}, {threads}, {row['processor']}, onnxruntime {row['onnxruntime']}"
    steps = Text(READ if row["steps"] == "read" else FOUND, style="dim")
    asked = f"for {option('target', 'auto')} to use it, set LEANONNX_TARGETS={Path(row['file']).absolute()}"
    use = f"{option('target', 'auto')} uses it from now on" if row["used_by_auto"] else asked
    end = Text(f"Stored in {row['file']} after {row['seconds']:.0f} s; {use}.")
    return Group(Text(head, style="bold"), *warned(row), _entries(row), steps, Text(""), *_checks(row), Text(""), end)


def _entries(row: Row) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("entry", "measured", "built-in", "unit", "what it means"):
        table.add_column(name, justify="right" if name in ("measured", "built-in") else "left")
    for name, entry in row["entries"].items():
        table.add_row(name, f"{entry['measured']:g}", f"{entry['built_in']:g}", entry["unit"], entry["meaning"])
    return table


def _checks(row: Row) -> list[RenderableType]:
    """How far the predictions are off on networks that no entry is taken from."""
    table = Table(box=None, pad_edge=False)
    for name in ("network", "measured", "predicted", "off by", "built-in", "off by"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for check in row["checks"]:
        ratios = [
            cell
            for name, error in (("predicted", "error"), ("built_in", "built_in_error"))
            for cell in (f"{check[name]:.2f}", f"{check[error]:+.0%}")
        ]
        table.add_row(check["network"], f"{check['measured']:.2f}", *ratios)
    worst = max(abs(check["error"]) for check in row["checks"])
    words = (
        f"How many times faster two networks get by losing channels, which no entry is taken from: the table is off by "
        f"up to {worst:.0%}. Two networks say little of others; compress measures what it writes all the same."
    )
    return [Text("Check", style="bold"), Text(words, style="dim"), table]

"""Branches of the rules, the surgery, the proof and the analysis that the tests take.

    python -m benchmarks.branch_coverage [--tests TEST ...] [--python PYTHON] [--workers N]

Runs the tests with pytest-cov (``pip install pytest-cov``; ``--python``: an interpreter that has it and all that the
tests need).  Branches that are run in processes of their own do not count.  Lines with ``# pragma: no cover`` and the
reason are excused.  The exit code is that of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, Row, environment, progress, save

NAME = "branch_coverage"
ROOMS = ("rules", "surgery", "proof", "analysis")
EXCUSE = "pragma: no cover"
Branch = tuple[int, int]
"""The line that branches, and where it goes; below 0 for the end of a function."""


def rows_of(report: Row) -> list[Row]:
    """A row for each source file: branches and lines, how many of them were taken, and the others."""
    rows = []
    for name, file in sorted(report["files"].items()):
        total = file["summary"]
        rows.append(
            {
                "file": name,
                "branches": total["num_branches"],
                "taken": total["covered_branches"],
                "lines": total["num_statements"],
                "run": total["covered_lines"],
                "missing_branches": file["missing_branches"],
                "missing_lines": file["missing_lines"],
                "excused": sum(EXCUSE in line for line in Path(ROOT / name).read_text(encoding="utf-8").splitlines()),
            }
        )
    return rows


def totals(rows: list[Row]) -> list[Row]:
    """A row for each room: its files, and the sums over them."""
    result = []
    for room in ROOMS:
        own = [row for row in rows if Path(row["file"]).parent.name == room]
        sums = {key: sum(row[key] for row in own) for key in ("branches", "taken", "lines", "run", "excused")}
        result.append({"room": room, "files": len(own), **sums})
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.branch_coverage", description=__doc__)
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders of tests")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="an interpreter that has pytest-cov")
    parser.add_argument("--workers", type=int, default=2, help="tests that run side by side")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = [str(args.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(args.workers)]
        words += [f"--cov=leanonnx/{room}" for room in ROOMS]
        words += ["--cov-branch", f"--cov-report=json:{report}", *args.tests]
        done = subprocess.run(words, check=False, cwd=ROOT, env=os.environ | {"COVERAGE_FILE": f"{folder}/data"})
        rows = rows_of(json.loads(report.read_text()))
    rooms = totals(rows)
    for row in rooms:
        progress(f"{row['room']}: {row['taken']} of {row['branches']} branches")
    save(NAME, {"environment": environment(), "tests": args.tests, "rooms": rooms, "rows": rows})
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())

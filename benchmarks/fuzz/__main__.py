"""Coverage-guided fuzzing of everything that leanonnx reads: no input may end in anything but an answer or a refusal.

    python -m benchmarks.fuzz [--only TARGET ...] [--seconds S] [--corpus FOLDER] [--python PYTHON]

Each target runs in a process of its own, which needs atheris (``pip install atheris``; ``--python``: an interpreter
that has it).  Inputs that reach new code are kept under FOLDER/TARGET; the next run goes on from them.  A finding is
an exception that is not a ``LeanOnnxError``, more memory than allowed or a run that hangs: its input is stored under
FOLDER/TARGET-findings, one for each place in the code.  The exit code is 1 where there are findings.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, Row, environment, load, progress, save
from benchmarks.fuzz.targets import TARGETS

NAME = "fuzz"
MAX_BYTES = 1 << 14
"""Largest input, in bytes."""
MAX_MEMORY = 4 << 10
"""Largest memory of a process, in MB."""
HANGING_SECONDS = 60
"""Seconds after which one input counts as hanging."""
STATISTICS = {"runs": r"stat::number_of_executed_units:\s+(\d+)", "edges": r"cov: (\d+)", "kept": r"corp: (\d+)"}


def run_target(name: str, python: Path, folder: Path, seconds: int) -> Row:
    """Fuzz one target for a time in a process of its own; its statistics and findings."""
    findings = folder / f"{name}-findings"
    for each in (folder / name, findings):
        each.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-rss_limit_mb={MAX_MEMORY}"]
    options += [
        f"-timeout={HANGING_SECONDS}",
        "-print_final_stats=1",
        f"-report_slow_units={HANGING_SECONDS}",
        f"-artifact_prefix={findings}/",
    ]
    words = [str(python), "-m", "benchmarks.fuzz.worker", name, str(folder), *options]
    before = _processor_seconds()
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT)
    row: Row = {"target": name, "seconds": round(_processor_seconds() - before), "exit_code": done.returncode}
    for key, pattern in STATISTICS.items():
        matches = re.findall(pattern, done.stderr)
        row[key] = int(matches[-1]) if matches else None
    row["findings"] = sorted(path.name for path in findings.iterdir())
    if row["runs"] is None:
        row["message"] = next(iter(done.stderr.strip().splitlines()[-1:]), "")
    return row


def _processor_seconds() -> float:
    """Processor time of all processes started so far that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=3600, help="of each target")
    parser.add_argument("--corpus", type=Path, default=ROOT / "benchmarks" / "data" / "fuzz", help="inputs of before")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="an interpreter that has atheris")
    args = parser.parse_args(argv)
    rows = [enter(run_target(name, args.python, args.corpus.resolve(), args.seconds)) for name in args.only]
    return 1 if any(row["findings"] or row["exit_code"] for row in rows) else 0


def enter(row: Row) -> Row:
    """Save the row of a target; times and runs add up with those of before, findings are those that are left."""
    rows = load(NAME)["rows"] if (RESULTS / f"{NAME}.json").exists() else []
    before = next((each for each in rows if each["target"] == row["target"]), None)
    if before is not None and row["runs"] is not None:
        row |= {key: row[key] + (before[key] or 0) for key in ("seconds", "runs")}
    progress(str(row))
    rows = [each for each in rows if each["target"] != row["target"]]
    save(NAME, {"environment": environment(), "rows": [*rows, row]})
    return row


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())

"""Coverage-guided fuzzing of everything that leanonnx reads: no input may end in anything but an answer or a refusal.

    python -m benchmarks.fuzz [--only TARGET ...] [--seconds S] [--corpus FOLDER] [--python PYTHON]

Each target runs in a process of its own, which needs atheris (``pip install atheris``; ``--python``: an interpreter
that has it).  Inputs that reach new code are kept under FOLDER/TARGET; the next run goes on from them.  A finding is
an exception that is neither a ``LeanOnnxError`` nor a ``MemoryError``, more memory than allowed or a run that hangs:
its input is stored under FOLDER/TARGET-findings, one for each place in the code.  The exit code is 1 where there are
findings.
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
MAX_MEMORY = 8 << 10
"""Largest memory of a process, in MB."""
HANGING_SECONDS = 60
"""Seconds after which one input counts as hanging."""
STATISTICS = {"runs": r"stat::number_of_executed_units:\s+(\d+)", "edges": r"cov: (\d+)", "kept": r"corp: (\d+)"}
SECONDS = re.compile(r"Done \d+ runs in (\d+) second")


def run_target(name: str, python: Path, folder: Path, seconds: int) -> Row:
    """Fuzz one target for a time in processes of its own; its statistics and findings, and the processor's seconds.

    A process ends with an input that hangs or takes too much memory; the next one goes on for the time that is left.
    """
    findings = folder / f"{name}-findings"
    for each in (folder / name, findings):
        each.mkdir(parents=True, exist_ok=True)
    row: Row = {"target": name, "seconds": 0, "runs": None, "exit_code": 0}
    while (left := seconds - row["seconds"]) > 0:
        begin = _processor_seconds()
        done = _run_worker(name, python, folder, left)
        row["exit_code"] = row["exit_code"] or done.returncode
        found = {key: re.findall(pattern, done.stderr) for key, pattern in STATISTICS.items()}
        if not found["runs"]:
            row["message"] = next(iter(done.stderr.strip().splitlines()[-1:]), "")
            break
        row["runs"] = int(found["runs"][-1]) + (row["runs"] or 0)
        row |= {key: int(found[key][-1]) if found[key] else None for key in ("edges", "kept")}
        used = _processor_seconds() - begin  # without what the start took, where the process could say so
        row["seconds"] += max(round(min([used, *map(int, SECONDS.findall(done.stderr))])), 1)
        if not done.returncode:
            break
    row["findings"] = sorted(path.name for path in findings.iterdir())
    return row


def _run_worker(name: str, python: Path, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Fuzz one target in a process until the time is over, or until it hangs or takes too much memory."""
    limits = {
        "max_total_time": seconds,
        "max_len": MAX_BYTES,
        "rss_limit_mb": MAX_MEMORY,
        "timeout": HANGING_SECONDS,
        "report_slow_units": HANGING_SECONDS,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder / name}-findings/",
    }
    words = [str(python), "-m", "benchmarks.fuzz.worker", name, str(folder)]
    words += [f"-{option}={value}" for option, value in limits.items()]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT)


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
    known = load(NAME)["rows"] if (RESULTS / f"{NAME}.json").exists() else []
    rows = {each["target"]: each for each in known}
    before = rows.get(row["target"])
    if before is not None and row["runs"] is not None:
        row |= {key: row[key] + (before[key] or 0) for key in ("seconds", "runs")}
    progress(str(row))
    rows[row["target"]] = row
    save(NAME, {"environment": environment(), "rows": list(rows.values())})
    return row


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())

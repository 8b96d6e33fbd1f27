"""The same compression again and again on a machine that is kept busy on purpose.

    python -m benchmarks.busy MODEL [--runs 10] [--load 4] [options of compress]

Each run gives one of two outcomes, and says which: the widths that the budget alone chooses, or "could not tell" with
exit code 1.  On a machine that is not busy, a leaner selection may replace that of the budget, which is told as well.
Without a budget it is half of the kernels.  The results go to ``benchmarks/results/busy.json``; the exit code is 1
where an outcome was none of these.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from benchmarks.common import COMMAND, Finished, Row, compress, environment, progress, run, save

LOAD = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Program of a process that keeps one processor busy as long as its parent lives."""
DEFAULT_BUDGET = ("--keep", "0.5")
SAME, UNTOLD, REPLACED, OTHER = "widths of the budget", "could not tell", "replaced, and told", "a broken promise"
SHOWN_DIGITS = 12
"""Digits of a digest that are shown."""


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processors busy."""
    processes = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def outcome(done: Finished, target: Path, alone: str) -> Row:
    """One run: its outcome, digest, speed-up and interval; ``alone``: the digest of the widths of the budget."""
    report, digest = done.report, _digest(target)
    latency, replaced = report.get("latency") or {}, report.get("replaced") is not None
    if done.code == 0 and digest == alone and not replaced:
        kind = SAME
    elif done.code == 0 and replaced and any("measuring replaced" in text for text in report["warnings"]):
        kind = REPLACED
    elif done.code == 1 and UNTOLD in done.message and not target.exists():
        kind = UNTOLD
    else:
        kind = OTHER
    return {
        "outcome": kind,
        "code": done.code,
        "sha256": digest[:SHOWN_DIGITS],
        "busy": latency.get("busy"),
        "speedup": latency.get("speedup"),
        "interval": latency.get("interval"),
        "seconds": round(done.seconds, 1),
        "message": done.message,
    }


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def repeated(model: Path, options: Sequence[str], runs: int, load: int) -> Row:
    """The outcomes of the same command under a load."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unmeasured = folder / "alone.onnx"
        compress(model, unmeasured, *options)
        alone = _digest(unmeasured)
        rows = []
        with busy_processes(load):
            for index in range(runs):
                target = folder / f"{index}.onnx"
                rows.append(outcome(run([COMMAND, "compress", model, target, "--json", *options]), target, alone))
                progress(f"{index + 1}/{runs}: {rows[-1]}")
    counts = Counter(str(row["outcome"]) for row in rows)
    return {"load": load, "alone": alone[:SHOWN_DIGITS], "outcomes": dict(sorted(counts.items())), "runs": rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--load", type=int, default=4, help="processes that keep a processor busy each")
    args, options = parser.parse_known_args(argv)
    options = options or list(DEFAULT_BUDGET)
    row = repeated(args.model, options, args.runs, args.load)
    save("busy", {"environment": environment(), "model": args.model.name, "options": options, **row})
    print(f"{args.model.name} {' '.join(options)}, {args.load} busy processes: {row['outcomes']}")
    return 1 if OTHER in row["outcomes"] else 0


if __name__ == "__main__":
    sys.exit(main())

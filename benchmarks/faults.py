"""Every file operation of every command fails once: what is left, and what is said.

    python -m benchmarks.faults [--only CASE ...] [--faults NAME ...] [--step N] [--first N]

A command runs again and again; the n-th of its operations on files, or of its large allocations, fails, for n = 1, 2, …
until nothing fails any more. After each run: the inputs are as before, the outputs the old or the new ones as a whole,
nothing is left behind, the exit code is 0, 1 or 2, and there is a message. Kills before and after each write, fsync and
rename may leave a temporary folder, and no model rather than one beside files of another. ``--step`` and ``--first``
leave operations out. The exit code is 1 where a promise was broken. Results are added to those of the same cases.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import RESULTS, Row, environment, load, progress, save
from tests.faults import FAULTS, Fault, build_library, faults_of, runs
from tests.faults.runner import folder_hashes
from tests.helpers import CALIBRATION, CNN, build, cli, saved, saved_external

NAME = "faults"
MODEL, OUT = "model.onnx", "out.onnx"
QUICK = ("--keep", "0.5", "--align", "1", "--no-measure")
DATA = ("--calib", "inputs.npz")
MOST_TOLD = 20
"""Broken promises that are kept for each fault."""


class Case(NamedTuple):
    """A command whose operations fail.

    Attributes:
        command: the arguments of ``leanonnx``.
        inputs: files that it reads.
        is_external: the weights of the model are in a file of their own.
        needs: a package without which the command does nothing.
        resumes: it goes on where it stopped, so that it is run again after each fault, and must then succeed.
    """

    command: tuple[str, ...]
    inputs: tuple[str, ...] = (MODEL,)
    is_external: bool = False
    needs: str | None = None
    resumes: bool = False


CASES = {
    "compress": Case(("compress", MODEL, OUT, *QUICK)),
    "compress, external data": Case(("compress", MODEL, OUT, *QUICK), (MODEL, "weights.bin"), is_external=True),
    "compress, plan and page": Case(
        ("compress", MODEL, OUT, *QUICK, *DATA, "--plan-out", "plan.json", "--report", "page.html"),
        (MODEL, "inputs.npz"),
    ),
    "compress, timed": Case(("compress", MODEL, OUT, *QUICK[:-1], "--best-effort", "--threads", "1")),
    "compress to integers": Case(("compress", MODEL, OUT, *QUICK, *DATA, "--int8"), (MODEL, "inputs.npz")),
    "check": Case(
        ("check", MODEL, "small.onnx", "--data", "inputs.npz", "--junit", "junit.xml"),
        (MODEL, "inputs.npz", "small.onnx"),
    ),
    "sweep": Case(
        ("sweep", MODEL, "--out", "curve", "--keep", "0.6,0.4", "--align", "1", "--no-measure", "--save-models"),
        resumes=True,
    ),
    "finetune": Case(
        ("finetune", "small.onnx", OUT, "--teacher", MODEL, "--data", "inputs.npz", "--epochs", "1"),
        (MODEL, "inputs.npz", "small.onnx"),
        needs="torch",
    ),
}


def prepare(case: Case, folder: Path) -> None:
    """Write what a command reads, and an older result."""
    (saved_external if case.is_external else saved)(build(CNN), folder / MODEL)
    np.savez(folder / "inputs.npz", x=CALIBRATION)
    if "small.onnx" in case.inputs:
        done = cli("compress", folder / MODEL, folder / "small.onnx", *QUICK)
        assert done.returncode == 0, done.stderr
    for name in {"inputs.npz"} - set(case.inputs):
        (folder / name).unlink()


def sweep_over(case: Case, fault: Fault, pristine: Path, library: Path, wanted: Sequence[int]) -> Row:
    """All runs of a command with one kind of fault."""
    first, step = wanted
    old = folder_hashes(pristine)
    (clean,) = runs(library, pristine, case.command, Fault(0))
    assert clean.code == 0, clean.message
    counted: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    broken: list[Row] = []
    for done in runs(library, pristine, case.command, fault, first, step, case.resumes):
        if not done.fired:
            continue
        counted[done.operation] += 1
        codes[str(done.code)] += 1
        wrong = faults_of(done, old, clean.folder, case.inputs)
        if wrong:
            broken.append({"number": done.number, "operation": done.operation, "code": done.code, "wrong": wrong})
            broken[-1]["message"] = done.message[-500:]
    return {"runs": counted.total(), "operations": counted, "codes": codes, "broken": broken[:MOST_TOLD]}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS), metavar="NAME")
    parser.add_argument("--first", type=int, default=1, help="the first operation that fails")
    parser.add_argument("--step", type=int, default=1, help="every how many operations one fails")
    args = parser.parse_args(argv)
    is_whole = True
    with tempfile.TemporaryDirectory() as folder:
        library = build_library(Path(folder) / "faults.so")
        for name in args.only:
            case = CASES[name]
            if case.needs and find_spec(case.needs) is None:
                progress(f"{name}: {case.needs} is not installed")
                continue
            pristine = Path(folder) / "".join(filter(str.isalnum, name))
            pristine.mkdir()
            prepare(case, pristine)
            for fault in args.faults:
                row = sweep_over(case, FAULTS[fault], pristine, library, (args.first, args.step))
                progress(f"{name}, {fault}: {row['runs']} runs, {len(row['broken'])} broken promises")
                for each in row["broken"]:
                    progress(f"  {each}")
                is_whole = is_whole and not row["broken"]
                enter({"case": name, "fault": fault, "step": args.step, **row})
    return 0 if is_whole else 1


def enter(row: Row) -> None:
    """Save a row in place of one of the same case and fault."""
    rows = load(NAME)["rows"] if (RESULTS / f"{NAME}.json").exists() else []
    rows = [each for each in rows if (each["case"], each["fault"]) != (row["case"], row["fault"])]
    save(NAME, {"environment": environment(), "rows": [*rows, row]})


if __name__ == "__main__":
    raise SystemExit(main())

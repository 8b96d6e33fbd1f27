"""A tolerance as the target of one command, beside the best of eight budgets by hand.

    python -m benchmarks.tolerance FOLDER [--zoo ZOO] [--work FOLDER] [--only NAME ...] [--ways WAY ...]

FOLDER and ZOO: see ``benchmarks.material``; networks that are not there are left out.  Both ways make the multiply-adds
small, so that a busy machine changes nothing; the results are timed beside the original in one thread.  By hand: a full
run for each budget, and the smallest whose number on the held-out samples of its report is within the tolerance.  Cells
that are in the results already are not measured again.  ``python -m benchmarks.digest`` then fills the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.material import Material
from benchmarks.tolerance import experiment
from benchmarks.tolerance.page import AIMED, HAND

SECONDS = 4.0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    names = [case.network for case in experiment.CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tolerance", description=__doc__)
    parser.add_argument("folder", type=Path, help="networks of real size, with samples")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "benchmarks" / "data" / "tolerance", help="folder for what is made"
    )
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help="networks")
    parser.add_argument("--ways", nargs="+", default=[AIMED, HAND], choices=[AIMED, HAND])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    experiment.measure(Material(args.folder, args.zoo, args.work), args.only, args.ways, args.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Channels alone against channels and whole branches: accuracy on unseen samples, and time side by side.

    python -m benchmarks.blocks FOLDER [--zoo ZOO] [--work FOLDER] [--only NAME ...] [--tune PYTHON] [OPTIONS]

FOLDER and ZOO: see ``benchmarks.material``; networks that are not there are left out.  Every network is compressed to
budgets of measured time (one thread, one sample) and of multiply-adds.  Under a budget of time, channels alone are then
asked again for the time that the network with branches takes.  Cells that are in the results already, with their
network in the work folder, are not measured again.  ``--tune``: an interpreter that has torch; it fine-tunes one
network instead.  ``python -m benchmarks.digest`` then fills the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.blocks import experiment
from benchmarks.blocks.page import BUDGETS
from benchmarks.common import ROOT
from benchmarks.material import Material

SECONDS = 8.0
TUNED_NETWORK = "resnet56_cifar"
TUNED_MINUTES = 30.0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocks", description=__doc__)
    parser.add_argument("folder", type=Path, help="networks of real size, with samples")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "benchmarks" / "data" / "blocks", help="folder for what is made"
    )
    parser.add_argument("--only", nargs="+", default=list(experiment.NETWORKS), metavar="NAME", help="networks")
    parser.add_argument("--ways", nargs="+", default=list(experiment.WAYS), choices=list(experiment.WAYS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--tune", type=Path, metavar="PYTHON", help="fine-tune one network with this interpreter")
    parser.add_argument("--minutes", type=float, default=TUNED_MINUTES, help="of training")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    material = Material(args.folder, args.zoo, args.work)
    if args.tune:
        experiment.tune(material, TUNED_NETWORK, args.ways, args.tune, args.minutes, args.seconds)
    else:
        wanted = experiment.Wanted(args.only, args.budgets, args.ways)
        experiment.measure(material, wanted, args.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

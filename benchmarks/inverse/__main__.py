"""Inverse problems: compressed-sensing MRI, super-resolution and tomography, pruned, recovered and fine-tuned.

    python -m benchmarks.inverse STAGE [--work FOLDER] [--photographs FOLDER] [--only PROBLEM ...] [--again METHOD ...]

STAGE is build (data and original networks; needs torch), measure (the cells; needs torch), time, or pictures (needs
matplotlib); ``python -m benchmarks.digest`` then fills the page. Half of the objects are parts of photographs from a
folder, of at least five images; without one all are phantoms. Cells that are in the results already are not measured
again, unless ``--again`` names their method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import ROOT, progress
from benchmarks.inverse import experiment, pictures, problems

STAGES = ("build", "measure", "time", "pictures")
PHOTOGRAPHS = ROOT.parent / "shared" / "zoo" / "data" / "imagenet"


def build(lab: experiment.Lab, chosen: list[str], photographs: Path | None) -> None:
    """Data and networks."""
    from benchmarks.inverse import originals

    lab.folder.mkdir(parents=True, exist_ok=True)
    for problem in chosen:
        problems.write(problem, lab.folder, photographs)
        originals.build(problem, photographs, lab.folder)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inverse", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "benchmarks" / "data" / "inverse", help="folder for networks and data"
    )
    parser.add_argument(
        "--photographs", type=Path, default=PHOTOGRAPHS if PHOTOGRAPHS.exists() else None, help="folder of images"
    )
    parser.add_argument("--only", nargs="+", default=list(problems.PROBLEMS), choices=list(problems.PROBLEMS))
    parser.add_argument("--again", nargs="+", default=[], metavar="METHOD", help="measure these methods alone, anew")
    args = parser.parse_args(argv)
    lab = experiment.Lab(args.work)
    if args.stage == "build":
        build(lab, args.only, args.photographs)
    elif args.stage == "measure":
        experiment.measure(lab, args.only, args.again)
    elif args.stage == "time":
        experiment.time_networks(lab, args.only)
    else:
        for problem in args.only:
            progress(str(pictures.picture(lab, problem, experiment.STRATEGIES[problem])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

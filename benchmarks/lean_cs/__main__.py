"""The LEAN paper's experiment: its mixed-scale dense network, pruned to the authors' ratios and retrained.

    python -m benchmarks.lean_cs STAGE [--zoo ZOO] [--work FOLDER] [--methods M ...] [--ratios R ...]

STAGE is prune, recover, finetune, chain or page (see ``experiment``). Needs torch and a C compiler; page needs
matplotlib too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.lean_cs import experiment, page

STAGES = ("prune", "recover", "finetune", "chain", "page")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    methods = list(experiment.METHODS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lean_cs", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="models and their data")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "benchmarks" / "data" / "lean_cs", help="folder for networks and images"
    )
    parser.add_argument("--methods", nargs="+", default=methods, choices=[*methods, experiment.MIXED])
    parser.add_argument("--ratios", nargs="+", type=float, default=list(experiment.RATIOS))
    parser.add_argument("--images", type=int, default=1000, help="images that finetune sees")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual images of a chain")
    args = parser.parse_args(argv)
    lab = experiment.lab(args.zoo, args.work)
    if args.stage == "page":
        experiment.collect(lab, args.zoo)
        page.write_page()
        return 0
    if args.stage == "chain":
        for method in args.methods:
            experiment.chain(lab, method, args.scale)
    elif args.stage == "finetune":
        experiment.finetune(lab, args.methods, args.ratios, args.images)
    else:
        experiment.one_shot(lab, args.methods, args.ratios, args.stage)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

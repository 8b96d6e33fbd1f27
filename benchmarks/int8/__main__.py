"""8-bit integers of several quantisers: accuracy on unseen samples, time beside the float network, bytes.

    python -m benchmarks.int8 FOLDER [--zoo ZOO] [--work FOLDER] [--only NAME ...] [--nncf PYTHON] [OPTIONS]

FOLDER and ZOO: see ``benchmarks.material``; networks that are not there are left out.  Each network, and what leanonnx
makes of it at half the multiply-adds, is put into integers by leanonnx, by onnxruntime with its defaults and with the
right settings, and by NNCF (``--nncf``: an interpreter that has it).  Scores are computed with onnxruntime's
optimisations off; what is for the other kind of processor (with or without VNNI) is scored, but not timed.  With
``--no-times`` leanonnx decides without measuring, and a later call without it measures what is in the work folder.
Cells that are in the results already, with their file in the work folder, are not made again, and times are taken again
only where the machine was busy.  leanonnx decides for one thread, and again for more if it is slower with them.
``python -m benchmarks.digest`` then fills the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.int8 import experiment
from benchmarks.int8.page import METHODS, SOURCES
from benchmarks.material import Material

SECONDS = 4.0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("folder", type=Path, help="networks of real size, with samples")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "benchmarks" / "data" / "int8", help="folder for what is made"
    )
    parser.add_argument("--only", nargs="+", default=list(experiment.NETWORKS), metavar="NAME", help="networks")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="float networks")
    parser.add_argument("--ways", nargs="+", default=list(METHODS), choices=METHODS, help="quantisers")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads to time with")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--nncf", type=Path, metavar="PYTHON", help="an interpreter that has NNCF")
    parser.add_argument("--this-kind", action="store_true", help="nothing for the other kind of processor")
    parser.add_argument("--no-times", action="store_true", help="scores only")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = experiment.Wanted(
        networks=args.only,
        sources=args.sources,
        methods=args.ways,
        other_kind=not args.this_kind,
        threads=[] if args.no_times else args.threads,
        seconds=args.seconds,
        nncf=args.nncf,
    )
    experiment.measure(Material(args.folder, args.zoo, args.work), wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

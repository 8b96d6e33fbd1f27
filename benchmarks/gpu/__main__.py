"""Latency on an NVIDIA GPU of the benchmark networks before and after compression.

    python -m benchmarks.gpu [--provider NAME …] [--networks NAME …] [--keep F …] [--batch N …] [--seconds S] [--page]

Each network is measured as float32 (with TF32 and without), float16 and int8 (TensorRT), each against its own baseline,
with a CUDA graph and without.  Before anything is timed, the provider's libraries have to load, every node has to run
on the provider, and its outputs have to be those of the CPU.  Clock, power, temperature and throttling are logged
meanwhile.  Results are saved after every network; ``--page`` writes the page anew from the last ones.  ``--provider
cpu`` goes through all steps without a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import load, progress
from benchmarks.gpu.experiment import SETTINGS, Plan, measure_all, missing, result_name
from benchmarks.gpu.page import write_page
from benchmarks.networks import ARCHITECTURES

PROVIDERS = ("cuda", "tensorrt")
KEEPS = (0.5, 0.25, 0.1)
BATCHES = (1, 8, 32)
SECONDS = 2.0
USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--provider", nargs="+", choices=SETTINGS, default=list(PROVIDERS), help="execution providers")
    parser.add_argument("--networks", nargs="+", choices=sorted(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--keep", nargs="+", type=float, default=KEEPS, help="fractions of the kernels")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="sizes of the first axis")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--no-widths", action="store_true", help="do not measure the table of widths")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        for provider in args.provider:
            if reason := missing(provider):
                progress(f"nothing to measure on with the {provider} provider: {reason}")
                return USER_ERROR
        measure_all(
            Plan(
                providers=args.provider,
                networks=args.networks,
                keeps=args.keep,
                batches=args.batch,
                seconds=args.seconds,
                widths=not args.no_widths,
            )
        )
    if "cpu" not in args.provider:  # a trial on the CPU is no result
        write_page(load(result_name(args.provider)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

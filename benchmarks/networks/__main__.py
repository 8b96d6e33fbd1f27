"""Write one network to a file: `python -m benchmarks.networks resnet18 resnet18.onnx --folded`."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from . import ARCHITECTURES, build


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("name", choices=sorted(ARCHITECTURES), help="the network")
    parser.add_argument("out", type=Path, help="the ONNX file to write")
    parser.add_argument("--folded", action="store_true", help="fold batch normalisation into the convolutions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    args = parser.parse_args(argv)
    onnx.save(build(args.name, args.folded, args.seed), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

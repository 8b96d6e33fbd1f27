"""Work for ``benchmarks.speed`` in a process of its own: seconds of the single stages, and ResNet-50 at other widths.

python -m benchmarks.stages measure MODEL --keep 0.25
python -m benchmarks.stages build WIDTH MODEL
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import onnx

from benchmarks.networks.builder import Builder
from benchmarks.networks.classic import RESNETS, resnet
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.model import load
from leanonnx.numeric.chains import Block
from leanonnx.ranking.criteria import Chains
from leanonnx.ranking.weighting import weighted_blocks
from leanonnx.runtime.observation import observe
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select

DEPTHS = ((2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))
WIDTHS = (256, 512, 1024)
Result = TypeVar("Result")
KINDS: tuple[Chains, ...] = ("cover", "through", "free")


class Span(NamedTuple):
    """Seconds on the clock, and seconds of processor time, which other processes disturb less."""

    wall: float
    cpu: float


def timed(work: Callable[[], Result]) -> tuple[Result, Span]:
    """What the work gives, and its seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, Span(time.perf_counter() - wall, time.process_time() - cpu)


def measure(path: Path, keep: float) -> dict[str, Any]:
    """Kernels of a model, how many of them are larger than 1×1, and seconds of the stages.

    ``norms``: the gains of all kernels. ``cover``, ``through``, ``free``: from the norms to the keep set, that is
    chains, ranking and the search for the budget.
    """
    model = load(path)
    dag = build_channel_dag(model, observe(model, {}))
    blocks, norms = timed(lambda: weighted_blocks(dag))
    kernels = sum(block.gains.size for block in blocks if block.is_counted)
    del blocks
    spatial = sum(mix.sources.size * mix.destinations.shape[1] for _, mix in dag.kernel_blocks if mix.taps > 1)
    spans = {"norms": norms} | {kind: _chains(dag, keep, kind) for kind in KINDS}
    return {"kernels": kernels, "spatial": spatial, **{name: span._asdict() for name, span in spans.items()}}


def _chains(dag: ChannelDag, keep: float, kind: Chains) -> Span:
    """Seconds of a selection, less those of the norms that the same selection computes on its way."""
    norms: list[Span] = []

    def weights(dag: ChannelDag, ignored: Collection[int] = ()) -> list[Block]:
        blocks, span = timed(lambda: weighted_blocks(dag, ignored))
        norms.append(span)
        return blocks

    with patch("leanonnx.ranking.weighting.weighted_blocks", weights):
        whole = timed(lambda: select(dag, _request(keep, kind)))[1]
    if len(norms) != 1:
        raise RuntimeError(f"a selection was expected to weigh the kernels once, not {len(norms)} times")
    return Span(whole.wall - norms[0].wall, whole.cpu - norms[0].cpu)


def _request(keep: float, kind: Chains) -> SelectionRequest:
    return SelectionRequest(budget=Budget("kernels", keep), method="lean", chains=kind, best_effort=True)


def build(name: str, path: Path) -> None:
    """Write one of ``SIZES``."""
    builder = Builder(folded=True)
    SIZES[name](builder)
    onnx.save(builder.model(name), path)


def _deep(depths: tuple[int, int, int, int], builder: Builder) -> None:
    resnet(builder, RESNETS["resnet50"]._replace(depths=depths))


def _wide(width: int, builder: Builder) -> None:
    """Eight 3×3 convolutions of one width on a 14×14 image."""
    x = builder.input(1, 3, 14, 14)
    for _ in range(8):
        x = builder.relu(builder.conv(x, width, 3))
    builder.classifier(builder.global_pool(x))


SIZES: dict[str, Callable[[Builder], None]] = {
    **{f"depth{3 * sum(depths) + 2}": partial(_deep, depths) for depths in DEPTHS},
    **{f"width{width}": partial(_wide, width) for width in WIDTHS},
}
"""Networks of growing size: bottleneck ResNets by depth, stacks of 3×3 convolutions by width."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure", help="print the seconds of each stage as JSON")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("--keep", type=float, default=0.25)
    building = verbs.add_parser("build", help="write a network of growing size")
    building.add_argument("name", choices=SIZES)
    building.add_argument("model", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "build":
        build(args.name, args.model)
    else:
        print(json.dumps(measure(args.model, args.keep)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

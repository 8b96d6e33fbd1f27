"""Work for ``benchmarks.speed`` and ``benchmarks.calibration`` in a process of its own: seconds of the single stages,
and networks of growing size.

python -m benchmarks.stages measure MODEL --keep 0.25
python -m benchmarks.stages calibrate MODEL SAMPLES OUT
python -m benchmarks.stages forward MODEL SAMPLES
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
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.data.samples import ImageFormat, open_data, with_runnable_batch
from leanonnx.graph.model import load
from leanonnx.numeric.chains import Block
from leanonnx.ranking.criteria import Chains
from leanonnx.ranking.weighting import weighted_blocks
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import claim_process, open_session
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select

RESET = Path("/proc/self/clear_refs")
"""Written to reset the peak memory of the process (Linux)."""
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


class StageMeter:
    """Processor seconds and peak memory of each stage, as ``Progress`` of a compression."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.name, self.since = "", time.process_time()

    def __call__(self, stage: str, done: float | None = None, item: str = "") -> None:
        """Note the stage that is running."""
        if stage != self.name:
            self.close()
            self.name = stage
            RESET.write_text("5")

    def close(self) -> None:
        """End the current stage."""
        now = time.process_time()
        if self.name:
            row = self.stages.setdefault(self.name, {"cpu": 0.0, "peak": 0.0})
            row["cpu"] += now - self.since
            row["peak"] = max(row["peak"], _peak())
        self.since = now


def _peak() -> float:
    """Peak memory of this process since the last reset, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def calibrate(model: Path, samples: Path, out: Path) -> dict[str, Any]:
    """Compress to half of the multiply-adds; processor seconds and peak memory by stage."""
    claim_process()
    meter = StageMeter()
    options = CompressOptions(budget=Budget.of_option("macs", 0.5), calib=samples, best_effort=True)
    compress_file(model, out, options, progress=meter)
    meter.close()
    return {"stages": meter.stages}


def forward(model: Path, samples: Path) -> dict[str, float]:
    """Run a model once over all samples; processor seconds of the runs alone."""
    claim_process()
    loaded = load(model)
    data = with_runnable_batch(open_data(samples, loaded, observe(loaded, {}).shapes, ImageFormat()), loaded)
    with open_session(model) as session:
        start = time.process_time()
        for feed in data.feeds(8):
            session.run(None, feed)
        return {"cpu": time.process_time() - start}


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
    for name, text in (("calibrate", "print the cost of each stage as JSON"), ("forward", "print that of one pass")):
        one = verbs.add_parser(name, help=text)
        one.add_argument("model", type=Path)
        one.add_argument("samples", type=Path)
        if name == "calibrate":
            one.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "calibrate":
        print(json.dumps(calibrate(args.model, args.samples, args.out)))
    elif args.verb == "forward":
        print(json.dumps(forward(args.model, args.samples)))
    elif args.verb == "build":
        build(args.name, args.model)
    else:
        print(json.dumps(measure(args.model, args.keep)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Build the rows that reports share: from a channel DAG, a proof, deviations and times."""

from __future__ import annotations

from collections.abc import Mapping

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.product_costs import products
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.intervals import DeviationIntervals, IntervalEnds
from leanonnx.evaluation.plausibility import is_by_chance
from leanonnx.evaluation.slices import ChannelDeviation
from leanonnx.formatting import json_value
from leanonnx.graph.nodes import name_of, node_title
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.proof.proof import Proof
from leanonnx.proof.runtimes import RuntimeComparison
from leanonnx.reporting.rows import (
    BeforeAfter,
    ComparisonRow,
    FidelityRow,
    IntervalRow,
    IntervalsRow,
    LatencyRow,
    LayerRow,
    LayoutChange,
    MetricChange,
    OutputDeviation,
    PinRow,
    ProductRow,
    ProofRow,
    RuntimesRow,
    WorstChannel,
)
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.limits import kernels_held_by


def layer_rows(dag: ChannelDag, alive: Mask) -> tuple[LayerRow, ...]:
    """The layers with kernels, before and after; ``alive`` is the keep mask [channels]."""
    rows = []
    for node, block in dag.kernel_blocks:
        proto = dag.model.proto.graph.node[node]
        before = block.sources.shape[0] * block.sources.shape[1] * block.destinations.shape[1]
        after = int((alive[block.destinations].sum(1) * alive[block.sources].sum(1)).sum())
        row = LayerRow(
            name=name_of(proto),
            operator=proto.op_type,
            groups=BeforeAfter(block.sources.shape[0], int(alive[block.destinations].any(1).sum())),
            inputs=_channels(block.sources, alive),
            outputs=_channels(block.destinations, alive),
            kernels=BeforeAfter(before * block.is_counted, after * block.is_counted),
            macs=BeforeAfter(before * block.taps * block.positions, after * block.taps * block.positions),
        )
        rows.append(row)
    return tuple(rows)


def _channels(channel_ids: ChannelIds, alive: Mask) -> BeforeAfter:
    return BeforeAfter(int(channel_ids.size), int(alive[channel_ids].sum()))


def product_rows(dag: ChannelDag, alive: Mask) -> tuple[ProductRow, ...]:
    """The nodes with multiply-adds but no kernels, before and after."""
    macs: dict[int, BeforeAfter] = {}
    for product in products(dag)[0]:
        before, after = macs.get(product.node, (0, 0))
        macs[product.node] = BeforeAfter(before + product.macs, after + product.remaining(alive))
    nodes = dag.model.proto.graph.node
    return tuple(ProductRow(name_of(nodes[k]), nodes[k].op_type, counts) for k, counts in macs.items())


def pin_rows(dag: ChannelDag, alive: Mask) -> tuple[PinRow, ...]:
    """The pinned channels by tensor and reason, those that most kept kernels touch first."""
    kernels = kernels_held_by(dag, cost_model(dag), alive, dag.pins, by=lambda pin: (pin.tensor, pin.reason))
    rows: dict[tuple[str, str], PinRow] = {}
    for pin in dag.pins:
        key = pin.tensor, pin.reason
        rows.setdefault(
            key,
            PinRow(
                tensor=pin.tensor,
                channels=int(pin.channel_ids.size),
                reason=pin.reason,
                advice=pin.advice,
                kernels=kernels[key],
            ),
        )
    return tuple(sorted(rows.values(), key=lambda row: (-row.kernels, row.tensor)))


def uncounted_nodes(dag: ChannelDag) -> tuple[str, ...]:
    """Titles of the nodes whose multiply-adds are not known."""
    return tuple(node_title(dag.model.proto.graph.node[k]) for k in products(dag)[1])


def input_shapes(dag: ChannelDag) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph inputs to which multiply-adds and proofs refer."""
    return {value.name: tuple(dag.shapes[value.name]) for value in dag.model.inputs}


def proof_row(proof: Proof) -> ProofRow:
    """The result of a proof."""
    return ProofRow(
        status=proof.status,
        max_relative_error=proof.max_relative_error,
        bound=proof.bound,
        inputs=proof.inputs,
        sizes=proof.sizes,
        outputs=proof.outputs,
    )


def runtimes_row(row: RuntimeComparison) -> RuntimesRow:
    """The comparison of a model between two runtimes."""
    ran = not row.reason
    return RuntimesRow(
        runtimes=row.runtimes,
        status=row.status,
        output=row.output if ran else None,
        max_relative_error=json_value(row.max_relative_error) if ran else None,
        bound=row.bound if ran else None,
        original_error=None if row.original_error is None else json_value(row.original_error),
        inputs=row.inputs,
        reason=row.reason or None,
    )


def fidelity_row(fidelity: Fidelity) -> FidelityRow:
    """The deviation of each output; a number that is infinite becomes None."""
    outputs = output_rows(fidelity)
    metric = None
    if fidelity.metric is not None:
        metric = MetricChange(
            name=fidelity.metric,
            better=fidelity.better_direction,
            before=fidelity.before,
            after=fidelity.after,
            before_interval=interval_row(fidelity.before_interval),
            after_interval=interval_row(fidelity.after_interval),
            by_chance=is_by_chance(fidelity) or None,
        )
    return FidelityRow(fidelity.samples, outputs, metric)


def output_rows(fidelity: Fidelity) -> Mapping[str, OutputDeviation]:
    """The deviation of each output by its name."""
    return {
        one.output: OutputDeviation(
            relative_l2=json_value(one.relative_l2),
            psnr=json_value(one.psnr),
            top1=one.top1,
            top5=one.top5,
            worst_channel=worst_channel(one.channels),
            vacuous=one.vacuous or None,
            intervals=intervals_row(one.intervals),
            reshaped=one.reshaped or None,
        )
        for one in fidelity.outputs
    }


def intervals_row(intervals: DeviationIntervals) -> IntervalsRow:
    """The intervals of the measures of a deviation."""
    return IntervalsRow(
        relative_l2=interval_row(intervals.relative_l2),
        psnr=interval_row(intervals.psnr),
        top1=interval_row(intervals.top1),
        top5=interval_row(intervals.top5),
    )


def interval_row(interval: IntervalEnds | None) -> IntervalRow | None:
    """The ends of an interval; an end that is infinite becomes None."""
    return None if interval is None else (json_value(interval[0]), json_value(interval[1]))


def worst_channel(channels: ChannelDeviation | None) -> WorstChannel | None:
    """The slice of an output that deviates most; None for an output without channels."""
    if channels is None:
        return None
    return WorstChannel(
        axis=channels.axis,
        index=channels.index,
        relative_l2=json_value(channels.relative_l2),
        interval=interval_row(channels.interval),
    )


def comparison_row(timing: TimingComparison) -> ComparisonRow:
    """The ratio of two models' times, rounded to four digits."""
    low, high = timing.interval
    return ComparisonRow(
        speedup=round(timing.speedup, 4),
        interval=(round(low, 4), round(high, 4)),
        noise=round(timing.noise, 4),
        rounds=timing.rounds,
        lots=timing.lots,
        verdict=timing.verdict,
    )


def latency_row(timing: TimingComparison | None, setting: Setting) -> LatencyRow | None:
    """The measured times of one run before and after; None if they were not measured."""
    if timing is None:
        return None
    return LatencyRow(
        provider=setting.provider,
        threads=setting.threads,
        before_ms=round(timing.before.median, 4),
        after_ms=round(timing.after.median, 4),
        comparison=comparison_row(timing),
        busy=timing.is_busy,
        convolutions=LayoutChange(timing.before.layouts, timing.after.layouts),
    )

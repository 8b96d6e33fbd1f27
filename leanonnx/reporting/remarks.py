"""Sentences on a compression: what was removed, what was cleaned up, which weights were changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from leanonnx.analysis.cost import CopiedConstants
from leanonnx.formatting import count_text, percent_text
from leanonnx.reporting.reports import (
    CompressionReport,
    DataFreeRow,
    LosslessRow,
    QuantisationRow,
    ReadingRow,
    RecoveryRow,
    ToleranceRow,
)
from leanonnx.reporting.rows import IntervalRow, MetricChange, RemovedBranch
from leanonnx.spelling import option

REMOVED_CHANNELS = {"unread": "that nothing reads", "constant": "that are constant whatever the input"}
"""Reasons for which channels contribute nothing."""
TIDIED_NODES = {
    "unread": ("node", "that nothing reads"),
    "no-op": ("node", "without effect"),
    "branch": ("join", "with an operand that adds nothing"),
    "constant": ("computed operand", "that is constant, stored as such"),
    "merged": ("layer", "merged into the weights before or behind"),
}
"""Kinds of nodes that are removed from a graph, by reason."""
STAND_INS = {"linear": "a matrix", "shortcut": "the convolution beside it", "scale": "a factor for each channel"}
"""What takes the place of a branch, by kind."""
MAX_NAMED_OPERATORS = 5


def remarks(report: CompressionReport) -> list[str]:
    """The sentences on a compression."""
    source = report.weights_from
    restored = [f"Weights restored as they were when the plan was made, from {source}"] if source else []
    return [
        *_lossless_remarks(report.lossless),
        *_branch_remarks(report.branches),
        *_tidied_remarks(report.tidied),
        *_copied_remarks(report.copied),
        *folded_remarks(report.folded),
        *uncounted_remarks(report.uncounted),
        *_unfitted_remarks(report.recovery),
        *_data_free_remarks(report.data_free),
        *restored,
        *_quantisation_remarks(report.quantisation),
    ]


def _quantisation_remarks(row: QuantisationRow | None) -> list[str]:
    """Sentences on the layers in 8-bit integers, and on those that stay float, by reason."""
    if row is None or not row.kept:
        return []
    integer = sum(layer.format == "int8" for layer in row.layers)
    nodes = "" if row.integer_nodes is None else f"; onnxruntime fuses {count_text(row.integer_nodes, 'integer layer')}"
    raised = "" if row.opset_raised_from is None else f"; raised from operator set {row.opset_raised_from}"
    faster = "" if row.comparison is None else f"; {row.comparison.speedup:.2f} times the speed of the float network"
    remark = (
        f"In 8-bit integers: {integer} of {count_text(len(row.layers), 'layer')} ({row.formats}; "
        f"{', '.join((f'ranges by {row.ranges}', *row.corrections))}){nodes}{raised}{faster}"
    )
    counts = Counter(layer.reason for layer in row.layers if layer.reason)
    reasons = "; ".join(f"{count} because {reason}" for reason, count in counts.most_common())
    return [remark, *([f"Float layers: {reasons}"] if reasons else [])]


def _branch_remarks(branches: Sequence[RemovedBranch]) -> list[str]:
    """A sentence on each branch that was replaced."""
    return [
        f"Branch replaced by {STAND_INS[one.kind]}: the one that ends at '{one.tensor}', with "
        f"{count_text(one.nodes, 'node')} and {one.macs:,} multiply-adds; {percent_text(one.unexplained)} of the "
        "variance of that tensor is left unexplained"
        for one in branches
    ]


def _copied_remarks(copied: CopiedConstants | None) -> list[str]:
    if copied is None:
        return []
    if not copied.count:
        return [f"No constant that was cut has several readers: {option('unshare', True)} changed nothing"]
    return [f"{count_text(copied.count, 'constant')} copied for each reader: {copied.bytes:,} bytes more"]


def _unfitted_remarks(row: RecoveryRow | None) -> list[str]:
    """A sentence on the layers that recovery left as they were, counted by reason."""
    counts = Counter(layer.reason for layer in row.layers if layer.reason) if row and row.kept else Counter[str]()
    if not row or not counts:
        return []
    reasons = "; ".join(f"{count} because {reason}" for reason, count in counts.most_common())
    return [f"Not fitted: {counts.total()} of {count_text(len(row.layers), 'layer')}: {reasons}"]


def folded_remarks(names: Sequence[str]) -> list[str]:
    """A sentence on the weights that are stored in place of the nodes that computed them."""
    if not names:
        return []
    return [f"{count_text(len(names), 'weight')} computed from constants: folded (stored as the value that is read)"]


def uncounted_remarks(names: Sequence[str]) -> list[str]:
    """A sentence on the operators whose multiply-adds are not known."""
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED_OPERATORS} more" if len(names) > MAX_NAMED_OPERATORS else ""
    shown = ", ".join(names[:MAX_NAMED_OPERATORS])
    return [f"Not counted, since they are not known: the multiply-adds of {shown}{more}"]


def sample_text(row: RecoveryRow) -> str:
    """The number of samples on which the deviation was measured, and whether they were held out."""
    if row.parts:
        return cross_fit_text(row.deviation.samples, row.parts)
    return count_text(row.deviation.samples, f"{'held-out ' if row.held_out else ''}sample")


def cross_fit_text(samples: int, parts: int) -> str:
    """The samples of cross-fitting over parts."""
    return f"all {count_text(samples, 'sample')} by cross-fitting over {parts} parts"


def metric_text(metric: MetricChange) -> str:
    """The metric of both models: "accuracy: 0.9123 → 0.9011 (higher is better)"."""
    return f"{metric.name}: {_sides(metric, '{:.4f}'.format)} ({metric.better} is better)"


def score_text(metric: MetricChange) -> str:
    """The metric of both models in short: "accuracy 91.2 % → 90.1 % (88.0 % to 92.2 %)"."""
    form = percent_text if metric.better == "higher" else "{:.3g}".format
    return f"{metric.name} {_sides(replace(metric, before_interval=None), form)}"


def _sides(metric: MetricChange, form: Callable[[float], str]) -> str:
    """The metric of both models, with intervals where they are known."""
    sides = ((metric.before, metric.before_interval), (metric.after, metric.after_interval))
    return " → ".join(
        f"{'∞' if value is None else form(value)}{interval_text(interval, form)}" for value, interval in sides
    )


def interval_text(interval: IntervalRow | None, form: Callable[[float], str]) -> str:
    """An interval in brackets behind its number: " (0.88 to 0.92)"; empty without one."""
    if interval is None:
        return ""
    ends = (infinite if end is None else form(end) for end, infinite in zip(interval, ("-∞", "∞"), strict=True))
    return f" ({' to '.join(ends)})"


def percent_interval(interval: IntervalRow | None) -> str:
    """An interval of shares in brackets: " (71.2 % to 78.5 %)"; empty without one."""
    return interval_text(interval, percent_text)


def _lossless_remarks(row: LosslessRow | None) -> list[str]:
    if not row:
        return []
    counts = ", ".join(f"{count} {REMOVED_CHANNELS[reason]}" for reason, count in row.channels.items())
    layers = [f"Removed layers: {', '.join(row.layers)}"] if row.layers else []
    return [f"Removed channels: {counts}", *layers]


def _tidied_remarks(counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    parts = ((*TIDIED_NODES[reason], count) for reason, count in counts.items())
    return ["Cleaned up: " + ", ".join(f"{count_text(count, noun)} {text}" for noun, text, count in parts)]


def _data_free_remarks(row: DataFreeRow | None) -> list[str]:
    if row is None:
        return []
    kinds = ((row.constants, "constant"), (row.means, "by the mean"), (row.merged, "merged into others"))
    counts = ", ".join(f"{count} {text}" for count, text in kinds if count)
    declined = "; changes that rest on a guess of the inputs were left out" if row.declined else ""
    return [f"Recovery without data, channels at the layers that read them: {counts or 'none'}{declined}"]


def tolerance_text(row: ToleranceRow) -> str:
    """The samples and bounds that the candidates were judged by."""
    return (
        f"Tolerances on {count_text(row.samples, 'held-out sample')} that nothing else has seen: value and bound, "
        f"{row.confidence:.0%} sure for all of at most {count_text(row.allowed, 'look')}"
        + ("" if row.ended is None else f"; ended after {len(row.looks)}: {row.ended}")
    )


def reading_cell(name: str, reading: ReadingRow) -> str:
    """A number with its bound and its limit."""
    above = name.startswith("min")
    worst = "-∞" if above else "∞"
    value, bound = (worst if each is None else f"{each:.4g}" for each in (reading.value, reading.bound))
    return f"{value} ({'≥' if above else '≤'} {bound}), limit {reading.limit:g}"

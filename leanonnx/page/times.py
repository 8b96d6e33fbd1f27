"""Time of each layer before and after, and the layers on onnxruntime's fast path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.operators.facts import PRODUCT_FAMILIES
from leanonnx.operators.table import names_of
from leanonnx.reporting.rows import LayerRow
from leanonnx.runtime.fastpath import FLOAT_CONVOLUTIONS
from leanonnx.runtime.profiling import NodeTime
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import profile_in_subprocess

PROFILE_SECONDS = 2.0
"""Seconds for which both models are profiled together."""
MAX_DRAWN_LAYER_BARS, MAX_DRAWN_OPERATOR_BARS = 20, 6
KERNEL_OPERATORS = names_of(*PRODUCT_FAMILIES)
"""Operators with kernels, those that onnxruntime makes by fusing included."""


@dataclass(frozen=True, kw_only=True)
class TimeBar:
    """Milliseconds of one layer, or of all other nodes of one operator; ``number`` is None for these.

    ``before`` or ``after`` is None where there is no such node.  ``fast``, before and after: its convolutions ran in
    the blocked layout (None: it has none).
    """

    number: int | None
    name: str
    operator: str
    before: float | None
    after: float | None
    fast: tuple[bool | None, bool | None] = (None, None)

    @property
    def longer(self) -> float:
        """The larger of both times."""
        return max(self.before or 0.0, self.after or 0.0)

    @property
    def path(self) -> str:
        """The fast path in words; nothing for what is no convolution, or was removed."""
        was, now = self.fast
        if now is None:
            return ""
        if was is None or was == now:
            return "fast path" if now else "off the fast path"
        return "now on the fast path" if now else "left the fast path"


@dataclass(frozen=True)
class LayerTimes:
    """Layers and other operators, the longest first, the numbers of either that are drawn, and both models' sums.

    ``factors``: the profiled times of both models were multiplied by these.
    """

    layers: tuple[TimeBar, ...]
    others: tuple[TimeBar, ...]
    drawn: tuple[int, int]
    before: float
    after: float
    factors: tuple[float, float] = (1.0, 1.0)

    def scaled_to(self, before: float, after: float) -> LayerTimes:
        """The same shares of other sums: of the times of one run that were measured without a profile."""
        factors = before / (self.before or 1.0), after / (self.after or 1.0)
        layers, others = (tuple(_scaled(line, factors) for line in lines) for lines in (self.layers, self.others))
        return LayerTimes(layers, others, self.drawn, before, after, factors)

    @property
    def longest(self) -> float:
        """Milliseconds of the longest bar."""
        return max((line.longer for line in self.layers + self.others), default=1.0) or 1.0

    def rest(self, lines: Sequence[TimeBar], drawn: int) -> tuple[float, float]:
        """Sums of the lines that are not drawn."""
        hidden = lines[drawn:]
        return sum(line.before or 0.0 for line in hidden), sum(line.after or 0.0 for line in hidden)


def layer_times(result: CompressResult, draft: Path, rows: Sequence[LayerRow]) -> LayerTimes | str:
    """Profile both models once; a sentence on the reason where that cannot be done."""
    if result.latency is None:
        return "Latency was not measured, so no layer was timed."
    if result.setting.uses_gpu:
        return "Layers are timed on the CPU only: on a GPU the profiler sees the start of the work, not its end."
    model = result.dag.model
    try:
        before, after = profile_in_subprocess(
            [model.path, draft],
            result.dag.observation.feeds,
            replace(result.setting, libraries=model.libraries),
            PROFILE_SECONDS,
        )
    except RunFailed as error:
        return f"The layers could not be timed: {error}."
    timing = result.latency
    return compare_profiles(result.dag, rows, before, after).scaled_to(timing.before.median, timing.after.median)


def _scaled(line: TimeBar, factors: tuple[float, float]) -> TimeBar:
    before, after = (
        None if side is None else factor * side for side, factor in zip((line.before, line.after), factors, strict=True)
    )
    return replace(line, before=before, after=after)


def compare_profiles(
    dag: ChannelDag, rows: Sequence[LayerRow], before: Sequence[NodeTime], after: Sequence[NodeTime]
) -> LayerTimes:
    """The nodes of both profiles, joined by layer."""
    sides = [_by_place(dag, works) for works in (before, after)]
    lines = [
        _bar(dag, rows, place, [side.get(place, []) for side in sides])
        for place in dict.fromkeys((*sides[0], *sides[1]))
    ]
    lines.sort(key=lambda line: -line.longer)
    layers, others = (tuple(line for line in lines if (line.number is None) == other) for other in (False, True))
    drawn = _drawn_count(layers, MAX_DRAWN_LAYER_BARS), _drawn_count(others, MAX_DRAWN_OPERATOR_BARS)
    total_before, total_after = (sum(work.ms for work in works) for works in (before, after))
    return LayerTimes(layers, others, drawn, total_before, total_after)


def _drawn_count(lines: Sequence[TimeBar], most: int) -> int:
    """Number of lines that are drawn; one more rather than a remainder of one."""
    return len(lines) if len(lines) <= most + 1 else most


def _by_place(dag: ChannelDag, works: Sequence[NodeTime]) -> dict[int | str, list[NodeTime]]:
    """Nodes of a profile by the layer that they compute, others by their operator."""
    by_place: dict[int | str, list[NodeTime]] = {}
    for work in works:
        layer = _layer(dag, work)
        by_place.setdefault(work.operator if layer is None else layer, []).append(work)
    return by_place


def _layer(dag: ChannelDag, work: NodeTime) -> int | None:
    """The node with kernels that a node of a profile computes; None if it is something else.

    Where onnxruntime has fused a layer with nodes after it, its name may be that of the last one: a node with kernels
    that is named after one without is the nearest layer before that.
    """
    layers = {node for node, _ in dag.kernel_blocks}
    producers, nodes = dag.model.producers, dag.model.proto.graph.node
    if work.tensor not in producers:
        return None
    seen = [producers[work.tensor]]
    if work.operator not in KERNEL_OPERATORS:
        return seen[0] if seen[0] in layers and nodes[seen[0]].op_type == work.operator else None
    for node in seen:
        if node in layers:
            return node
        seen += [producers[name] for name in nodes[node].input if name in producers and producers[name] not in seen]
    return None


def _bar(dag: ChannelDag, rows: Sequence[LayerRow], place: int | str, sides: Sequence[Sequence[NodeTime]]) -> TimeBar:
    before, after = (sum(work.ms for work in works) if works else None for works in sides)
    if isinstance(place, str):
        return TimeBar(number=None, name=place, operator=place, before=before, after=after)
    number = next(k for k, (node, _) in enumerate(dag.kernel_blocks) if node == place)
    fast = tuple(_is_fast(works) for works in sides)
    return TimeBar(
        number=number + 1,
        name=rows[number].name,
        operator=rows[number].operator,
        before=before,
        after=after,
        fast=(fast[0], fast[1]),
    )


def _is_fast(works: Sequence[NodeTime]) -> bool | None:
    """True if a layer's convolutions all ran in the blocked layout; None without any."""
    blocked = [work.blocked for work in works if work.operator in FLOAT_CONVOLUTIONS]
    return all(blocked) if blocked else None

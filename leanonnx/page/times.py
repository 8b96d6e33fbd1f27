"""Time of each layer before and after, and which layers run on onnxruntime's fast path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.operators.facts import PRODUCT_FAMILIES
from leanonnx.operators.table import names_of
from leanonnx.reporting.report import Row
from leanonnx.runtime.fastpath import FLOAT_CONVOLUTIONS
from leanonnx.runtime.profiling import Work
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import measured_works

SECONDS = 2.0
"""For which both models are profiled together."""
MOST, FEW = 20, 6
"""Layers and other operators that are drawn."""
KERNELS = names_of(*PRODUCT_FAMILIES)
"""Operators with kernels, those that onnxruntime makes by fusing included."""


@dataclass(frozen=True)
class Line:
    """Milliseconds of one layer, or of all other nodes of one operator; ``number`` is None for these.

    ``before`` or ``after`` is None where there is no such node. ``fast`` tells for both whether a convolution ran in
    the blocked layout (None: no convolution).
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
        """The fast path in words; nothing for what is no convolution, or is no longer there."""
        was, now = self.fast
        if now is None:
            return ""
        if was is None or was == now:
            return "fast path" if now else "off the fast path"
        return "now on the fast path" if now else "left the fast path"


@dataclass(frozen=True)
class Times:
    """Layers and other operators, the longest first, how many of either are drawn, and the sums of both models."""

    layers: tuple[Line, ...]
    others: tuple[Line, ...]
    drawn: tuple[int, int]
    before: float
    after: float

    @property
    def longest(self) -> float:
        """Milliseconds of the longest bar."""
        return max((line.longer for line in self.layers + self.others), default=1.0) or 1.0

    def rest(self, lines: Sequence[Line], drawn: int) -> tuple[float, float]:
        """Sums of what is not drawn of some lines."""
        hidden = lines[drawn:]
        return sum(line.before or 0.0 for line in hidden), sum(line.after or 0.0 for line in hidden)


def times(result: CompressResult, draft: Path, rows: list[Row]) -> Times | str:
    """Profile both models once; why not, where that was not done."""
    if result.latency is None:
        return "Latency was not measured, so no layer was timed."
    if result.setting.on_device:
        return "Layers are timed on the CPU only: on a GPU the profiler sees the start of the work, not its end."
    model = result.dag.model
    try:
        found = measured_works(
            [model.path, draft],
            result.dag.observation.feeds,
            replace(result.setting, libraries=model.libraries),
            SECONDS,
        )
    except RunFailed as error:
        return f"The layers could not be timed: {error}."
    return compared(result.dag, rows, *found)


def compared(dag: ChannelDag, rows: list[Row], before: Sequence[Work], after: Sequence[Work]) -> Times:
    """The nodes of both profiles, joined by layer."""
    sides = [_by_place(dag, works) for works in (before, after)]
    lines = [
        _line(dag, rows, place, [side.get(place, []) for side in sides])
        for place in dict.fromkeys((*sides[0], *sides[1]))
    ]
    lines.sort(key=lambda line: -line.longer)
    layers, others = (tuple(line for line in lines if (line.number is None) == other) for other in (False, True))
    drawn = _drawn(layers, MOST), _drawn(others, FEW)
    return Times(layers, others, drawn, *(sum(work.ms for work in works) for works in (before, after)))


def _drawn(lines: Sequence[Line], most: int) -> int:
    """How many of the lines are drawn; one more rather than a remainder of one."""
    return len(lines) if len(lines) <= most + 1 else most


def _by_place(dag: ChannelDag, works: Sequence[Work]) -> dict[int | str, list[Work]]:
    """Nodes of a profile by the layer that they compute, others by their operator."""
    found: dict[int | str, list[Work]] = {}
    for work in works:
        layer = _layer(dag, work)
        found.setdefault(work.operator if layer is None else layer, []).append(work)
    return found


def _layer(dag: ChannelDag, work: Work) -> int | None:
    """The node with kernels that a node of a profile computes; None if it is something else.

    Where onnxruntime has joined a layer with what follows, its name may be that of the last: what has kernels but is
    named after a node without is the nearest layer before that.
    """
    mixing = {node for node, _ in dag.kernel_blocks}
    producers, nodes = dag.model.producers, dag.model.proto.graph.node
    if work.tensor not in producers:
        return None
    seen = [producers[work.tensor]]
    if work.operator not in KERNELS:
        return seen[0] if seen[0] in mixing and nodes[seen[0]].op_type == work.operator else None
    for node in seen:
        if node in mixing:
            return node
        seen += [producers[name] for name in nodes[node].input if name in producers and producers[name] not in seen]
    return None


def _line(dag: ChannelDag, rows: list[Row], place: int | str, sides: Sequence[Sequence[Work]]) -> Line:
    before, after = (sum(work.ms for work in works) if works else None for works in sides)
    if isinstance(place, str):
        return Line(None, place, place, before, after)
    number = next(k for k, (node, _) in enumerate(dag.kernel_blocks) if node == place)
    fast = tuple(_fast(works) for works in sides)
    return Line(number + 1, rows[number]["name"], rows[number]["operator"], before, after, (fast[0], fast[1]))


def _fast(works: Sequence[Work]) -> bool | None:
    """Whether a layer's convolutions all ran in the blocked layout; None without any."""
    found = [work.blocked for work in works if work.operator in FLOAT_CONVOLUTIONS]
    return all(found) if found else None

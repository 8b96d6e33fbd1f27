"""Corrections of predicted times by a profile of the network.

A node takes a fixed time while any of it is left, that of the quickest node of the profile, and the rest falls as the
table predicts: each node has a factor for it, measured over predicted time.  onnxruntime fuses nodes: the time of a
fused node is divided among its members in proportion to what the table predicts for them.  Layers of which the profile
says nothing are corrected like the network as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leanonnx.analysis.dag import ChannelDag
from leanonnx.runtime.profiling import NodeTime

FUSED = "Fused"
"""What onnxruntime puts before the operator of a layer that it fuses with the activation behind."""
MAX_FIXED_MS = 0.005
"""Largest fixed time of a node: that of the quickest node may be work."""
MAX_FACTOR = 8.0
"""Largest factor of a node relative to that of the network as a whole; its inverse is the smallest."""


@dataclass(frozen=True)
class Corrections:
    """Factors of the predicted time of each node (1 where none is given), and ms that a node takes at any width."""

    factors: Mapping[int, float] = field(default_factory=dict)
    fixed: Mapping[int, float] = field(default_factory=dict)


NO_CORRECTIONS = Corrections()
"""The table alone."""


def measured_corrections(
    dag: ChannelDag, predicted: Iterable[tuple[int, float]], profile: Sequence[NodeTime]
) -> Corrections:
    """The corrections that a profile asks for; none without a profile.

    Args:
        dag: the network.
        predicted: parts of the predicted ms of one run, with their nodes.
        profile: measured nodes, as onnxruntime runs them.
    """
    record_of, producers = _record_of_nodes(dag, profile), dag.model.producers
    measured: dict[int, float] = defaultdict(float)
    for time in profile:
        if time.tensor in producers:
            measured[producers[time.tensor]] += time.ms
    fixed = min([MAX_FIXED_MS, *(time.ms for time in profile)])
    expected: dict[int, float] = defaultdict(float)
    nodes: dict[int, int | None] = {}
    for node, ms in predicted:
        nodes[node] = record_of.get(node)
        if node in record_of:
            expected[record_of[node]] += ms
    falling = {record: max(measured[record] - fixed, 0.0) for record, ms in expected.items() if ms}
    total = sum(expected[record] for record in falling)
    overall = sum(falling.values()) / total if total else 0.0
    if not overall:
        return Corrections()
    low, high = overall / MAX_FACTOR, overall * MAX_FACTOR
    factors = {record: min(max(ms / expected[record], low), high) for record, ms in falling.items()}
    return Corrections(
        {node: overall if record is None else factors.get(record, overall) for node, record in nodes.items()},
        dict.fromkeys(falling, fixed),
    )


def _record_of_nodes(dag: ChannelDag, profile: Sequence[NodeTime]) -> dict[int, int]:
    """The node that the record is named after which tells the time of each node.

    A record of another operator than the node that it is named after was fused from that node and those before it
    (a Conv named after its Relu), but a FusedConv named after its Conv from the nodes after it.
    """
    nodes, producers = dag.model.proto.graph.node, dag.model.producers
    named = {producers[time.tensor]: time.operator for time in profile if time.tensor in producers}
    record_of = {node: node for node in named}
    reads = [[producers[name] for name in node.input if name in producers] for node in nodes]
    for index, before in enumerate(reads):
        head = next((one for one in before if named.get(one) == FUSED + nodes[one].op_type), None)
        if head is not None:
            record_of.setdefault(index, head)
    layers = {node for node, _ in dag.kernel_blocks}
    for record in sorted(named):
        waiting = [] if nodes[record].op_type in named[record] else [record]
        while waiting:
            fused = set(reads[waiting.pop()]) - set(record_of)
            fused -= {one for one in fused & layers if nodes[one].op_type not in named[record]}
            record_of.update(dict.fromkeys(fused, record))
            waiting += sorted(fused - layers)
    for index, before in enumerate(reads):
        known = [record_of[one] for one in before if one in record_of]
        if known and index not in layers:
            record_of.setdefault(index, known[0])
    return record_of

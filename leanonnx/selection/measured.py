"""Corrections of predicted times by a profile of the network: measured over predicted time of each of its nodes.

onnxruntime fuses nodes: the time of a fused node is divided among its members in proportion to what the table predicts
for them.  Layers of which the profile says nothing are corrected like the network as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from leanonnx.analysis.dag import ChannelDag
from leanonnx.runtime.profiling import NodeTime

FUSED = "Fused"
"""What onnxruntime puts before the operator of a layer that it fuses with the activation behind."""
MAX_FACTOR = 8.0
"""Largest correction of a node relative to that of the network as a whole; its inverse is the smallest."""


def measured_factors(
    dag: ChannelDag, predicted: Iterable[tuple[int, float]], profile: Sequence[NodeTime]
) -> Mapping[int, float]:
    """Measured over predicted time of each node; empty without a profile.

    Args:
        dag: the network.
        predicted: parts of the predicted ms of one run, with their nodes.
        profile: measured nodes, as onnxruntime runs them.
    """
    record_of = _record_of_nodes(dag, profile)
    measured: dict[int, float] = defaultdict(float)
    for time in profile:
        if time.tensor in dag.model.producers:
            measured[dag.model.producers[time.tensor]] += time.ms
    ms: dict[int, float] = defaultdict(float)
    nodes: list[int] = []
    for node, part in predicted:
        nodes.append(node)
        if node in record_of:
            ms[record_of[node]] += part
    total = sum(ms.values())
    if not total or not sum(measured[record] for record in ms):
        return {}
    overall = sum(measured[record] for record in ms) / total
    bounds = overall / MAX_FACTOR, overall * MAX_FACTOR
    factors = {record: min(max(measured[record] / part, bounds[0]), bounds[1]) for record, part in ms.items() if part}
    return {node: factors.get(record_of.get(node, -1), overall) for node in nodes}


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

"""Corrections of predicted times by a profile of the network: measured over predicted time of each of its nodes.

onnxruntime fuses nodes: the time of a fused node is divided among its members in proportion to what the table predicts
for them.  Nodes of which the profile says nothing are corrected like the network as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from leanonnx.analysis.dag import ChannelDag
from leanonnx.runtime.profiling import NodeTime

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

    A record whose operator differs from that of the node that it is named after was fused from the nodes before that
    one; nodes that are then left were fused into the one that they read.
    """
    nodes, producers = dag.model.proto.graph.node, dag.model.producers
    named = {producers[time.tensor]: time.operator for time in profile if time.tensor in producers}
    record_of = {node: node for node in named}
    for record in sorted(named):
        if named[record] == nodes[record].op_type:
            continue
        waiting = [record]
        while waiting:
            before = {producers[name] for name in nodes[waiting.pop()].input if name in producers}
            fused = [node for node in sorted(before) if node not in record_of]
            record_of.update(dict.fromkeys(fused, record))
            waiting += fused
    for index, node in enumerate(nodes):
        if index not in record_of:
            read = next((record_of[producers[name]] for name in node.input if producers.get(name) in record_of), None)
            if read is not None:
                record_of[index] = read
    return record_of

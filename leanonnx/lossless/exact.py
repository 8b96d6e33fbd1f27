"""Find the channels that contribute nothing to the outputs, which stay the same without them.

A channel is needed if a path of fixed edges and carrying kernels leads from it to a root: a graph output, a pin, or a
channel that a rule does not account for.  A kernel carries nothing if it is zero, if the channel it reads is constantly
zero, or if that channel is constant and its contribution is added to a bias.  A group is removed if none of its
channels is needed; the values of kept channels do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.analysis.constant_channels import ConstantChannels, Flow, constant_channels
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import PRECISE_FLOATS, is_float
from leanonnx.graph.nodes import BIAS, BIASED, SHAPE_OPS, attribute, captured_names, is_per_channel, standard_name
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.rules.call import Pin
from leanonnx.surgery.patch import InputSlot, Maker, Patch, plan_patch

Edges = tuple[ChannelIds, ChannelIds, NDArray[np.bool_] | None]
"""Sources [G, I], targets [G, O] and the carrying kernels [G, O, I] (None: all, one source per target)."""


@dataclass(frozen=True, kw_only=True)
class ContributingChannels:
    """The channels that contribute to an output.

    Attributes:
        alive: their keep mask [channels].
        shifts: new biases by (node, slot).
        constants: tensors constant in every channel that a kernel reads, including channels later folded into a bias,
            with their numbers in the whole network.
        uniform: the same, with their numbers in the network of the channels that are alive.
        reasons: numbers of removed groups: 'unread' by any kernel but those of zeros, or 'constant'.
    """

    alive: Mask
    shifts: Mapping[InputSlot, Maker]
    constants: Mapping[str, Floats]
    uniform: Mapping[str, Floats]
    reasons: Mapping[str, int]


def find_contributing_channels(dag: ChannelDag, pins: tuple[Pin, ...] = ()) -> ContributingChannels:
    """Find the channels that contribute to an output; those of ``pins`` are kept in any case.

    A tensor keeps at least one channel unless all its consumers can do without it.
    """
    constants = constant_channels(dag)
    folds = {flow.node: place for flow in constants.flows if (place := _bias_slot(dag, flow)) is not None}
    roots = _roots(dag, pins)
    read = _needed_channels(dag, _edges(dag, [flow.nonzero for flow in constants.flows], constants.flows), roots)
    carrying = [flow.needed_kernels(folded=flow.node in folds) for flow in constants.flows]
    edges = _edges(dag, carrying, constants.flows)
    alive = _needed_channels(dag, edges, roots)
    while (lacking := _empty_tensors(dag, alive)).size:
        roots[lacking] = True
        alive = _needed_channels(dag, edges, roots)
    return ContributingChannels(
        alive=alive,
        shifts=_shifts(dag, constants, folds, alive),
        constants=constants.constant_tensors(dag, read),
        uniform=constants.constant_tensors(dag, read, alive),
        reasons=_reasons(dag, constants, alive),
    )


def exact_patch(dag: ChannelDag, contributing: ContributingChannels) -> Patch:
    """The patch that removes the channels that contribute nothing."""
    patch = plan_patch(dag, contributing.alive)
    return replace(patch, constants={**patch.constants, **contributing.shifts})


def _edges(dag: ChannelDag, kernels: list[NDArray[np.bool_]], flows: tuple[Flow, ...]) -> list[Edges]:
    """Edges of the carrying kernels [G, O, I], one mask for each flow, and all fixed edges; later nodes first."""
    edges: list[tuple[int, Edges]] = [
        (flow.node, (flow.block.sources, flow.block.destinations, carry))
        for flow, carry in zip(flows, kernels, strict=True)
    ]
    edges += [(node, (link.sources, link.destinations, None)) for node, link in dag.fixed_edges]
    return [edge for _, edge in sorted(edges, key=lambda item: -item[0])]


def _needed_channels(dag: ChannelDag, edges: list[Edges], roots: Mask) -> Mask:
    """Channels from which carrying edges lead to the roots, and all that are tied to them."""
    needed, count = roots.copy(), -1
    while count != (count := int(needed.sum())):
        groups = np.zeros(int(dag.groups.max()) + 1, bool)
        groups[dag.groups[needed]] = True
        needed = groups[dag.groups]
        for sources, targets, carry in edges:
            if carry is None:
                needed[sources[needed[targets]]] = True
            else:
                needed[sources[(carry & needed[targets][:, :, None]).any(1)]] = True
    return needed


def _roots(dag: ChannelDag, pins: tuple[Pin, ...]) -> Mask:
    """Channels that are kept whatever they contribute."""
    roots = np.zeros(dag.count, bool)
    roots[0] = True
    for pin in (*dag.pins, *pins):
        roots[pin.channel_ids] = True
    nodes = dag.model.proto.graph.node
    for use in dag.constant_uses:
        if nodes[use.node].input[use.slot] in dag.model.overridable:
            for factor in use.factors:
                roots[factor] = True
    for channel_ids in _unexplained_channels(dag):
        roots[channel_ids] = True
    return roots


def _unexplained_channels(dag: ChannelDag) -> list[ChannelIds]:
    """Channels that a node reads but neither outputs, moves, mixes nor links: their use is unknown.

    A channel tied to one that is output or linked is needed together with it.
    """
    proto = dag.model.proto
    mixed: dict[int, list[ChannelIds]] = {}
    linked: dict[int, list[ChannelIds]] = {}
    for index, mix in dag.kernel_blocks:
        mixed.setdefault(index, []).append(mix.sources)
    for index, link in dag.fixed_edges:
        linked.setdefault(index, []).append(link.sources)
    unused = unused_outputs(proto.graph.node, proto.graph)
    unexplained = []
    for index, node in enumerate(proto.graph.node):
        moved = any(name in dag.moves for name in node.output)
        if moved or node.op_type in SHAPE_OPS or unused.issuperset(name for name in node.output if name):
            continue
        read = np.setdiff1d(
            _flat([dag.channel_ids[name] for name in node.input if name in dag.channel_ids]),
            _flat(mixed.get(index, [])),
        )
        explained = _flat(
            [*linked.get(index, []), *(dag.channel_ids[name] for name in node.output if name in dag.channel_ids)]
        )
        unexplained.append(read[~np.isin(dag.groups[read], dag.groups[explained])])
    return unexplained


def _flat(arrays: list[ChannelIds]) -> ChannelIds:
    return np.concatenate([np.zeros(0, np.int64), *(array.reshape(-1) for array in arrays)])


def _empty_tensors(dag: ChannelDag, alive: Mask) -> ChannelIds:
    """One channel of each tensor that would lose all its channels although a remaining node reads it."""
    graph = dag.model.proto.graph
    wanted = {value.name for value in graph.output}
    beside = {node for node, _ in dag.concat_slots}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if wanted.isdisjoint(node.output):
            continue
        dropped = _unread_operands(dag, node, alive) if index in beside else set()
        wanted.update(name for slot, name in enumerate(node.input) if slot not in dropped)
        wanted |= captured_names(node)
    empty = [
        dag.channel_ids[name].min()
        for name in sorted(wanted & dag.channel_ids.keys())
        if not alive[dag.channel_ids[name]].any()
    ]
    return np.array(empty, np.int64)


def _unread_operands(dag: ChannelDag, node: onnx.NodeProto, alive: Mask) -> set[int]:
    """Slots of a Concat of which no channel is read any more."""
    channel_ids, axis = dag.channel_ids[node.output[0]], int(attribute(node, "axis", 1))
    line = np.asarray(np.moveaxis(alive[channel_ids], axis, 0).reshape(channel_ids.shape[axis], -1).any(axis=1))
    slots: set[int] = set()
    start = 0
    for slot, name in enumerate(node.input):
        if not name:
            continue
        size = dag.shapes[name][axis] if name in dag.shapes else dag.model.constant(name).shape[axis]
        if not line[start : start + size].any():
            slots.add(slot)
        start += size
    return slots


def _bias_slot(dag: ChannelDag, flow: Flow) -> InputSlot | None:
    """The slot of a mixing node's bias, present or not; None if nothing can be added to it."""
    node, model = dag.model.proto.graph.node[flow.node], dag.model
    if (
        standard_name(node) not in BIASED
        or not flow.is_uniform
        or (node.op_type == "Gemm" and flow.block.output_axis != -1)
    ):
        return None
    if flow.block.kernels().dtype not in PRECISE_FLOATS:
        return None
    name = node.input[BIAS] if len(node.input) > BIAS else ""
    if node.op_type == "Gemm" and (not attribute(node, "alpha", 1.0) or not attribute(node, "beta", 1.0)):
        return None
    if name and (name not in model.origins or name in model.overridable):
        return None
    if name:
        array = model.constant(name)
        if not is_float(array) or not is_per_channel(array, flow.block.destinations.size):
            return None
    return (flow.node, BIAS)


def _shifts(
    dag: ChannelDag, constants: ConstantChannels, folds: Mapping[int, InputSlot], alive: Mask
) -> dict[InputSlot, Maker]:
    """New biases that include the contributions of removed constant channels."""
    shifts: dict[InputSlot, Maker] = {}
    for flow in constants.flows:
        gone = np.where(alive[flow.block.sources] | np.isnan(flow.numbers), 0.0, flow.numbers)
        if flow.node not in folds or not gone.any():
            continue
        node, targets = dag.model.proto.graph.node[flow.node], flow.block.destinations.reshape(-1)
        ratio = attribute(node, "alpha", 1.0) / attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        shift = ratio * flow.constant_sums(gone).reshape(-1)
        if shift[alive[targets]].any():
            place = folds[flow.node]
            shifts[place] = partial(_bias_with_shift, dag, flow, place, shift, np.asarray(alive[targets]))
    return shifts


def _bias_with_shift(dag: ChannelDag, flow: Flow, place: InputSlot, shift: Array, kept: Mask) -> Array:
    """The bias of a node plus a shift for each output channel, of the channels that are kept."""
    inputs = dag.model.proto.graph.node[place[0]].input
    name = inputs[place[1]] if place[1] < len(inputs) else ""
    base = dag.model.constant(name) if name else np.zeros(shift.size, flow.block.kernels().dtype)
    total = (np.asarray(base, np.float64) + shift).astype(base.dtype)
    return np.ascontiguousarray(np.compress(kept, total, axis=-1))


def _reasons(dag: ChannelDag, constants: ConstantChannels, alive: Mask) -> dict[str, int]:
    """Numbers of removed groups by reason."""
    is_constant = np.zeros(dag.count, bool)
    for flow in constants.flows:
        read = (flow.nonzero & alive[flow.block.destinations][:, :, None]).any(1)
        is_constant[flow.block.sources[read & ~alive[flow.block.sources]]] = True
    dead = np.unique(dag.groups[~alive])
    constant = np.unique(dag.groups[is_constant & ~alive])
    return {"unread": int(dead.size - constant.size), "constant": int(constant.size)}

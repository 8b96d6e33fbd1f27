"""Derive a patch, the edits of a surgery as a value, from a keep set.

The patch that removes channels and the patch that only masks them (the reference of the proof) are derived from
the same channel ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.dag import ChannelDag, joint_edit
from leanonnx.analysis.runs import OperatorRun, common_run, trace_run
from leanonnx.errors import ProofFailed
from leanonnx.graph.formats import is_integer
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import node_title
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import Mask, any_along, is_rectangle, varied_axes
from leanonnx.rules.call import AttributeValue, Select, ShapeEdit

InputSlot = tuple[int, int]
Maker = Callable[[], Array]
ZERO_POINTS = {
    ("DequantizeLinear", 0): (2, 1),
    ("QLinearConv", 3): (5, 0),
    ("QLinearMatMul", 0): (2, -2),
    ("QLinearMatMul", 3): (5, -1),
    ("ConvInteger", 1): (3, 0),
    ("MatMulInteger", 0): (2, -2),
    ("MatMulInteger", 1): (3, -1),
}
"""(operator, slot of a quantised weight) → (slot of its zero point, axis of the weight that a vector of them spans)."""


@dataclass(frozen=True)
class Masking:
    """Elements of a computed tensor to read (``mask``) and the replacement for all others; both broadcast to it.

    ``zero`` None: zeros of its type.
    """

    mask: Mask
    zero: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The edits of a surgery.

    constants: (node, input slot) → function that makes the constant to read there.
    shape_edits: (node, input slot) → new entries of a computed integer vector; ``output_edits``: the same for outputs.
    selects: (node, input slot) → positions of a computed tensor to read.
    scales: (node, output slot) → factor of the output.
    masks: (node, input slot) → elements of a computed tensor to read, with zeros for the others.
    attributes: node → attribute → new value (None: removed).
    gathers: tensor → the run of movements that one Gather replaces, with the new indices.
    shrunk: tensors that lose channels, whose recorded shapes become invalid.
    copies: each place in ``constants`` gets a constant of its own, also where others get the same values.
    """

    constants: Mapping[InputSlot, Maker] = field(default_factory=dict)
    shape_edits: Mapping[InputSlot, ShapeEdit] = field(default_factory=dict)
    output_edits: Mapping[InputSlot, ShapeEdit] = field(default_factory=dict)
    selects: Mapping[InputSlot, Select] = field(default_factory=dict)
    scales: Mapping[InputSlot, float] = field(default_factory=dict)
    masks: Mapping[InputSlot, Masking] = field(default_factory=dict)
    attributes: Mapping[int, Mapping[str, AttributeValue]] = field(default_factory=dict)
    gathers: Mapping[str, tuple[OperatorRun, Array]] = field(default_factory=dict)
    shrunk: frozenset[str] = frozenset()
    copies: bool = False


def plan_patch(dag: ChannelDag, alive: Mask) -> Patch:
    """Return the patch that removes every channel that is not alive.

    Raises:
        ProofFailed: a node's edit depends on a size that the model leaves free.
    """
    constants: dict[InputSlot, Maker] = {
        (use.node, use.slot): partial(slice_constant, dag, use, alive)
        for use in dag.constant_uses
        if _is_cut(use, alive)
    }
    entries: dict[InputSlot, ShapeEdit] = {}
    outputs: dict[InputSlot, ShapeEdit] = {}
    picks: dict[InputSlot, Select] = {}
    scales: dict[InputSlot, float] = {}
    attributes: dict[int, Mapping[str, AttributeValue]] = {}
    shrunk = frozenset(name for name, channel_ids in dag.channel_ids.items() if not alive[channel_ids].all())
    touched = _affected_nodes(dag, shrunk)
    for node in dag.rewrites:
        if node not in touched:
            continue
        edit = joint_edit(dag, node, alive)
        if edit is None:
            named = node_title(dag.model.proto.graph.node[node])
            raise ProofFailed(
                f"{named}: its edit for the removed channels depends on a size that the model leaves free; "
                "nothing written; export the model with fixed input sizes"
            )
        attributes[node] = edit.attributes
        scales |= {(node, k): scale for k, scale in edit.output_scales.items() if scale != 1}
        names = dag.model.proto.graph.node[node].output
        for k, sizes in edit.outputs.items():
            if changes := _drop_unchanged(sizes):
                outputs[node, k] = _with_size(dag, names[k], changes)
        for slot, change in edit.inputs.items():
            if isinstance(change, Select):
                picks[node, slot] = change
            elif not isinstance(change, ShapeEdit):
                constants[node, slot] = partial(np.asarray, change)
            elif changes := _drop_unchanged(change):
                _record_edit(dag, (node, slot), changes, constants, entries)
    return Patch(
        constants=constants,
        shape_edits=entries,
        output_edits=outputs,
        selects=picks,
        scales=scales,
        attributes=attributes,
        gathers=_gathers(dag, alive),
        shrunk=shrunk,
        copies=dag.copies_constants,
    )


def _drop_unchanged(change: ShapeEdit) -> ShapeEdit | None:
    """Drop the entries that keep their value; None if no entry is left."""
    values = {k: value for k, value in change.values.items() if change.original_sizes.get(k) != value}
    return replace(change, values=values) if values else None


def _affected_nodes(dag: ChannelDag, shrunk: Set[str]) -> set[int]:
    """Nodes that read or output a tensor that loses channels, or whose outputs have no channels."""
    nodes = dag.model.proto.graph.node
    known = set(dag.channel_ids)
    return {
        k
        for k in dag.rewrites
        if not shrunk.isdisjoint([*nodes[k].input, *nodes[k].output]) or known.isdisjoint(nodes[k].output)
    }


def _with_size(dag: ChannelDag, name: str, change: ShapeEdit) -> ShapeEdit:
    """Set the length of the vector whose entries are edited."""
    return replace(change, length=dag.shapes[name][0])


def _record_edit(
    dag: ChannelDag,
    place: InputSlot,
    change: ShapeEdit,
    constants: dict[InputSlot, Maker],
    entries: dict[InputSlot, ShapeEdit],
) -> None:
    """Record new entries of a shape vector: written into a constant, or replaced in a computed vector."""
    model = dag.model
    name = model.proto.graph.node[place[0]].input[place[1]]
    if name not in model.origins:
        entries[place] = _with_size(dag, name, change)
        return
    vector = np.array(constants[place]() if place in constants else model.constant(name))
    vector[list(change.values)] = list(change.values.values())
    constants[place] = partial(np.asarray, vector)


def _is_cut(use: ConstantUse, alive: Mask) -> bool:
    return not all(alive[factor].all() for factor in use.factors)


def slice_constant(dag: ChannelDag, use: ConstantUse, alive: Mask) -> Array:
    """Return the constant of one use without its removed elements."""
    array = constant_of(dag, use)
    for axis, index in enumerate(kept_indices(use, array.shape, alive)):
        if index is not None:
            array = np.take(array, index, axis)
    return np.ascontiguousarray(array)


def constant_of(dag: ChannelDag, use: ConstantUse) -> Array:
    """Return the whole constant of one use."""
    return use.computed if use.computed is not None else dag.model.constant(use.constant)


def kept_indices(use: ConstantUse, shape: tuple[int, ...], alive: Mask) -> list[NDArray[np.int64] | None]:
    """Kept indices on each axis of a constant; None for an axis that is kept whole."""
    rank = len(shape)
    masks = [alive[f].reshape((1,) * (rank - f.ndim) + f.shape) for f in use.factors]
    indices: list[NDArray[np.int64] | None] = []
    for axis in range(rank):
        line = np.ones(1, bool)
        for mask in masks:
            line = line & any_along(mask, axis)
        indices.append(None if line.all() else np.flatnonzero(np.broadcast_to(line, shape[axis])))
    return indices


def masking_patch(dag: ChannelDag, alive: Mask) -> Patch:
    """Return the patch that zeroes removed channels in their consumers, for the unmodified network ``model.as_read``.

    Kernels that read them get zero weights; reductions over channels read zeros in their place.  Stored constants are
    masked themselves, weights that the network computes from constants are masked after that computation: no folded
    value enters the patch.
    """
    original, nodes = dag.model.as_read, dag.model.proto.graph.node

    def original_node(node: int) -> int:
        return original.producers[next(name for name in nodes[node].output if name)]

    constants: dict[InputSlot, list[ConstantUse]] = {}
    masks: dict[InputSlot, Masking] = {
        (original_node(node), reduction.slot): Masking(alive[reduction.channel_ids])
        for node, reductions in dag.reductions.items()
        for reduction in reductions
        if not alive[reduction.channel_ids].all()
    }
    for use in dag.constant_uses:
        if use.input_channel_ids is None or alive[use.input_channel_ids].all():
            continue
        place = (original_node(use.node), use.slot)
        if original.proto.graph.node[place[0]].input[use.slot] in original.origins:
            constants.setdefault(place, []).append(use)
        else:
            kept = alive[use.input_channel_ids]
            if place in masks:
                kept = kept & masks[place].mask
            masks[place] = Masking(kept, _zero(dag, use, constant_of(dag, use)))
    makers = {place: partial(_mask_weight, dag, uses, alive) for place, uses in constants.items()}
    return Patch(constants=makers, masks=masks)


def _mask_weight(dag: ChannelDag, uses: Sequence[ConstantUse], alive: Mask) -> Array:
    """Weight with zero kernels on the input channels that any of its uses removes (in integers: the zero point)."""
    array = constant_of(dag, uses[0])
    for use in uses:
        assert use.input_channel_ids is not None
        array = np.where(alive[use.input_channel_ids], array, _zero(dag, use, array)).astype(array.dtype)
    return array


def _zero(dag: ChannelDag, use: ConstantUse, array: Array) -> Array:
    """Zero of a weight, broadcastable to it; the zero point of an integer weight."""
    return _zero_point(dag.model, use, array) if is_integer(array) else np.zeros((), array.dtype)


def _zero_point(model: Model, use: ConstantUse, array: Array) -> Array:
    """Zero point of a quantised weight, broadcastable to it."""
    node = model.proto.graph.node[use.node]
    slot, axis = ZERO_POINTS.get((node.op_type, use.slot), (len(node.input), 0))
    if slot >= len(node.input) or not node.input[slot]:
        return np.zeros((), array.dtype)
    zero = np.asarray(model.constant(node.input[slot]))
    axis = next((a.i for a in node.attribute if a.name == "axis"), axis)
    shape = [1] * array.ndim
    shape[axis % array.ndim] = zero.size
    return zero.reshape(shape) if zero.size > 1 else zero.reshape(())


def _gathers(dag: ChannelDag, alive: Mask) -> dict[str, tuple[OperatorRun, Array]]:
    """Tensors whose kept elements no longer form a product of index sets, to be computed by one Gather each."""
    gathers: dict[str, tuple[OperatorRun, Array]] = {}
    for name, (source, _) in dag.moves.items():
        if len(varied_axes(dag.channel_ids[name])) > 1 or (
            len(varied_axes(dag.channel_ids[source])) <= 1 and name not in dag.gathered_outputs
        ):
            continue
        run = common_run([trace_run(name, at.moves, at.channel_ids, at.shapes) for at in dag.all_sizes])
        if run.indices is None or alive[dag.channel_ids[run.source]].all():
            continue
        if name not in dag.gathered_outputs and all(
            is_rectangle(alive[dag.channel_ids[inner]]) for inner in run.intermediate
        ):
            continue
        position = np.cumsum(alive[dag.channel_ids[run.source]].reshape(-1)) - 1
        kept = alive[np.broadcast_to(dag.channel_ids[name].reshape(-1), run.indices.shape)]
        gathers[name] = run, position[run.indices[kept]].astype(np.int64)
    return gathers

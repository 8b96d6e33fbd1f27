"""Keep set → patch: what surgery changes, as a value.

The patch that removes dead channels and the patch that merely masks them (the reference of the proof) are made
from the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.dag import ChannelDag, joint_edit
from leanonnx.analysis.runs import OperatorRun, gathered, same_run
from leanonnx.errors import ProofFailed
from leanonnx.graph.formats import is_integer
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import title
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import Mask, is_rectangle, projection, varied
from leanonnx.rules.call import Attribute, Select, ShapeEdit

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
"""Operators and the slots in which they read a quantised weight: the slot of its zero point, and the axis that a vector
of them belongs to."""


@dataclass(frozen=True)
class Masking:
    """Which elements of a computed tensor to read, and what stands in place of the others; both broadcast to it.

    None: zeros of its type.
    """

    mask: Mask
    zero: Array | None = None


@dataclass(frozen=True)
class Patch:
    """What surgery changes.

    constants: (node, input slot) → makes the constant to read there, when it is needed.
    entries: (node, slot) → new entries of a computed integer vector; ``outputs`` likewise for a node's output.
    picks: (node, slot) → which positions of a computed tensor to read.
    scales: (node, output slot) → what the output is multiplied by.
    masks: (node, input slot) → which elements of a computed tensor are read, zeros in place of the others.
    attributes: node → attribute → new value (None: removed).
    gathers: tensor → the run of movements that one Gather replaces, with the new indices.
    shrunk: tensors that lose channels; their recorded shapes hold no more.
    """

    constants: Mapping[InputSlot, Maker] = field(default_factory=dict)
    entries: Mapping[InputSlot, ShapeEdit] = field(default_factory=dict)
    outputs: Mapping[InputSlot, ShapeEdit] = field(default_factory=dict)
    picks: Mapping[InputSlot, Select] = field(default_factory=dict)
    scales: Mapping[InputSlot, float] = field(default_factory=dict)
    masks: Mapping[InputSlot, Masking] = field(default_factory=dict)
    attributes: Mapping[int, Mapping[str, Attribute]] = field(default_factory=dict)
    gathers: Mapping[str, tuple[OperatorRun, Array]] = field(default_factory=dict)
    shrunk: frozenset[str] = frozenset()


def plan_patch(dag: ChannelDag, alive: Mask) -> Patch:
    """The patch that removes every label that is not alive."""
    constants: dict[InputSlot, Maker] = {
        (use.node, use.slot): partial(sliced, dag, use, alive) for use in dag.uses if _cuts(use, alive)
    }
    entries: dict[InputSlot, ShapeEdit] = {}
    outputs: dict[InputSlot, ShapeEdit] = {}
    picks: dict[InputSlot, Select] = {}
    scales: dict[InputSlot, float] = {}
    attributes: dict[int, Mapping[str, Attribute]] = {}
    shrunk = frozenset(name for name, channel_ids in dag.channel_ids.items() if not alive[channel_ids].all())
    touched = _touched(dag, shrunk)
    for node in dag.rewrites:
        if node not in touched:
            continue
        edit = joint_edit(dag, node, alive)
        if edit is None:
            named = title(dag.model.proto.graph.node[node])
            raise ProofFailed(
                f"{named}: what it becomes without the channels depends on a size that the model leaves free; "
                "nothing written; export the model with fixed input sizes"
            )
        attributes[node] = edit.attributes
        scales |= {(node, k): scale for k, scale in edit.scales.items() if scale != 1}
        names = dag.model.proto.graph.node[node].output
        for k, sizes in edit.outputs.items():
            if changes := _changed(sizes):
                outputs[node, k] = _sized(dag, names[k], changes)
        for slot, change in edit.inputs.items():
            if isinstance(change, Select):
                picks[node, slot] = change
            elif not isinstance(change, ShapeEdit):
                constants[node, slot] = partial(np.asarray, change)
            elif changes := _changed(change):
                _enter(dag, (node, slot), changes, constants, entries)
    return Patch(
        constants, entries, outputs, picks, scales, attributes=attributes, gathers=_gathers(dag, alive), shrunk=shrunk
    )


def _changed(change: ShapeEdit) -> ShapeEdit | None:
    """Entries without the sizes that stay what they are; None where nothing is left."""
    values = {k: value for k, value in change.values.items() if change.before.get(k) != value}
    return replace(change, values=values) if values else None


def _touched(dag: ChannelDag, shrunk: Set[str]) -> set[int]:
    """Nodes that read or put out a tensor that loses channels, or lie behind a constant that is cut."""
    nodes = dag.model.proto.graph.node
    known = set(dag.channel_ids)
    return {
        k
        for k in dag.rewrites
        if not shrunk.isdisjoint([*nodes[k].input, *nodes[k].output]) or known.isdisjoint(nodes[k].output)
    }


def _sized(dag: ChannelDag, name: str, change: ShapeEdit) -> ShapeEdit:
    """Entries that know the length of the vector they are laid over."""
    return replace(change, size=dag.shapes[name][0])


def _enter(
    dag: ChannelDag,
    place: InputSlot,
    change: ShapeEdit,
    constants: dict[InputSlot, Maker],
    entries: dict[InputSlot, ShapeEdit],
) -> None:
    """New entries of a shape vector: written into a constant, or laid over a computed one."""
    model = dag.model
    name = model.proto.graph.node[place[0]].input[place[1]]
    if name not in model.origins:
        entries[place] = _sized(dag, name, change)
        return
    vector = np.array(constants[place]() if place in constants else model.constant(name))
    vector[list(change.values)] = list(change.values.values())
    constants[place] = partial(np.asarray, vector)


def _cuts(use: ConstantUse, alive: Mask) -> bool:
    return not all(alive[factor].all() for factor in use.factors)


def sliced(dag: ChannelDag, use: ConstantUse, alive: Mask) -> Array:
    """The constant of one use with its dead elements cut out."""
    array = constant_of(dag, use)
    for axis, index in enumerate(kept_indices(use, array.shape, alive)):
        if index is not None:
            array = np.take(array, index, axis)
    return np.ascontiguousarray(array)


def constant_of(dag: ChannelDag, use: ConstantUse) -> Array:
    """The whole constant of one use."""
    return use.computed if use.computed is not None else dag.model.constant(use.constant)


def kept_indices(use: ConstantUse, shape: tuple[int, ...], alive: Mask) -> list[NDArray[np.int64] | None]:
    """Surviving indices on each axis of a constant; None where all survive."""
    rank = len(shape)
    masks = [alive[f].reshape((1,) * (rank - f.ndim) + f.shape) for f in use.factors]
    found: list[NDArray[np.int64] | None] = []
    for axis in range(rank):
        line = np.ones(1, bool)
        for mask in masks:
            line = line & projection(mask, axis)
        found.append(None if line.all() else np.flatnonzero(np.broadcast_to(line, shape[axis])))
    return found


def masking_patch(dag: ChannelDag, alive: Mask) -> Patch:
    """The patch that zeroes, in the untouched network ``dag.model.as_read``, what the consumers read of dead channels.

    Consumers are the kernels that read them, whose weights are zeroed, and what takes channels together, which is given
    zeros to read.  Constants are masked where they are held, and what the network computes from constants behind that:
    no value that was folded goes into it.
    """
    original, nodes = dag.model.as_read, dag.model.proto.graph.node

    def there(node: int) -> int:
        return original.producers[next(name for name in nodes[node].output if name)]

    constants: dict[InputSlot, Maker] = {}
    masks: dict[InputSlot, Masking] = {
        (there(node), found.slot): Masking(alive[found.channel_ids])
        for node, reductions in dag.reductions.items()
        for found in reductions
        if not alive[found.channel_ids].all()
    }
    for use in dag.uses:
        if use.inward is None or alive[use.inward].all():
            continue
        place = (there(use.node), use.slot)
        if original.proto.graph.node[place[0]].input[use.slot] in original.origins:
            constants[place] = partial(_masked, dag, use, alive)
        else:
            masks[place] = Masking(alive[use.inward], _zero(dag, use, constant_of(dag, use)))
    return Patch(constants, masks=masks)


def _masked(dag: ChannelDag, use: ConstantUse, alive: Mask) -> Array:
    """A weight with zero kernels on dead input channels (for quantised weights: the zero point)."""
    array = constant_of(dag, use)
    assert use.inward is not None
    return np.where(alive[use.inward], array, _zero(dag, use, array)).astype(array.dtype)


def _zero(dag: ChannelDag, use: ConstantUse, array: Array) -> Array:
    """What stands for zero in a weight, broadcastable to it."""
    return _zero_point(dag.model, use, array) if is_integer(array) else np.zeros((), array.dtype)


def _zero_point(model: Model, use: ConstantUse, array: Array) -> Array:
    """The integer that stands for zero, broadcastable to the weight."""
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
    """Tensors whose run of movements no longer keeps a product of index sets."""
    found: dict[str, tuple[OperatorRun, Array]] = {}
    for name, (source, _) in dag.moves.items():
        if len(varied(dag.channel_ids[name])) > 1 or (
            len(varied(dag.channel_ids[source])) <= 1 and name not in dag.gathers
        ):
            continue
        run = same_run([gathered(name, at.moves, at.channel_ids, at.shapes) for at in dag.sizes])
        if run.indices is None or alive[dag.channel_ids[run.source]].all():
            continue
        if name not in dag.gathers and all(is_rectangle(alive[dag.channel_ids[inner]]) for inner in run.inside):
            continue
        position = np.cumsum(alive[dag.channel_ids[run.source]].reshape(-1)) - 1
        living = alive[np.broadcast_to(dag.channel_ids[name].reshape(-1), run.indices.shape)]
        found[name] = run, position[run.indices[living]].astype(np.int64)
    return found

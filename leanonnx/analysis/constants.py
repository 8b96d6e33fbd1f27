"""Locate the stored tensor behind each sliced constant.

Weights reach their consumer directly, through Identity, or dequantised, transposed or reshaped on the way; a slice is
traced back to the stored tensor, so that the file keeps its form.  A value that cannot be traced is stored itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import SHAPE_OPS, STANDARD_DOMAINS, captured_names
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import ChannelIds, any_along, compact_ids, reshape_ids, varied_axes
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with
from leanonnx.rules.call import Edit, Effect, KeptChannels, Rewrite, ShapeEdit
from leanonnx.rules.table import COUNTED_WEIGHT_SLOTS
from leanonnx.runtime.observation import Observation

TRACEABLE_ELEMENTWISE = names_with(Trait.ARITHMETIC) | (names_with(Trait.CARRIES) & names_of(Family.UNARY))
RESHAPING = names_of(Family.RESHAPE)
SIZE_SLOTS = {"ConstantOfShape": 0, "Expand": 1}
"""The slot in which an operator reads the shape of its output."""


@dataclass(frozen=True, kw_only=True)
class ConstantUse:
    """Input slot of a node that reads a sliced constant.

    ``constant``: name of the stored tensor; ``factors``: as in ``Slice``.
    ``input_channel_ids``: input channel of each element if the constant is the weight of a channel-mixing operator.
    ``computed``: the value if the graph computes it from other constants (surgery then stores this value).
    """

    node: int
    slot: int
    constant: str
    factors: tuple[ChannelIds, ...]
    input_channel_ids: ChannelIds | None = None
    computed: Array | None = None


@dataclass(frozen=True)
class ConstantUses:
    """Uses behind the slices of one node, and the rewrites of shape constants on the way, by node."""

    uses: tuple[ConstantUse, ...]
    rewrites: tuple[tuple[int, Rewrite], ...] = ()


@dataclass(frozen=True)
class Constants:
    """Resolves the constants of a model to stored tensors."""

    model: Model
    observation: Observation

    @cached_property
    def has_fixed_sizes(self) -> bool:
        """True if the sizes of all graph inputs are fixed."""
        return all(d.HasField("dim_value") for v in self.model.inputs for d in v.type.tensor_type.shape.dim)

    @cached_property
    def static(self) -> frozenset[str]:
        """Names of values computed from constants alone (or from input shapes, if these are fixed)."""
        known = set(self.model.holders)
        for node in self.model.proto.graph.node:
            reads = {n for n in [*node.input, *captured_names(node)] if n}
            shaped = self.has_fixed_sizes and node.op_type in SHAPE_OPS
            if reads and (shaped or reads <= known) and node.output[0] not in self.model.free:
                known.update(node.output)
        return frozenset(known)

    def fixed_value(self, name: str) -> Array | None:
        """Value of a constant that a caller cannot override and that no input size affects; None for other tensors."""
        if name in self.model.overridable or (name not in self.model.origins and name not in self.static):
            return None
        return self.model.constant(name) if name in self.model.origins else self.observation.values.get(name)

    def uses(self, index: int, effect: Effect) -> ConstantUses | None:
        """Uses of the slices of an effect; None if a sliced constant depends on run-time shapes."""
        inward = {block.slot: block.input_channel_ids for block in effect.kernel_blocks}
        uses: list[ConstantUse] = []
        rewrites: list[tuple[int, Rewrite]] = []
        for cut in effect.slices:
            traced = self._trace(index, cut.slot, cut.factors, inward.get(cut.slot))
            if traced is None:
                return None
            uses += traced.uses
            rewrites += traced.rewrites
        return ConstantUses(tuple(uses), tuple(rewrites))

    def _trace(
        self, index: int, slot: int, factors: tuple[ChannelIds, ...], inward: ChannelIds | None
    ) -> ConstantUses | None:
        """Trace a slice from the input of a node back to the stored tensor."""
        name = self.model.proto.graph.node[index].input[slot]
        if name in self.model.origins:
            return ConstantUses(
                (
                    ConstantUse(
                        node=index,
                        slot=slot,
                        constant=self.model.origins[name],
                        factors=factors,
                        input_channel_ids=inward,
                    ),
                )
            )
        if not any(varied_axes(f) for f in factors) and name not in self.static:
            return ConstantUses(())
        behind = self._trace_producer(self.model.producers[name], name, factors, inward)
        if behind is None and name in self.static and name not in self.model.overridable:
            return ConstantUses(
                (
                    ConstantUse(
                        node=index,
                        slot=slot,
                        constant=name,
                        factors=factors,
                        input_channel_ids=inward,
                        computed=self.observation.values[name],
                    ),
                )
            )
        return behind

    def _trace_producer(
        self, producer: int, name: str, factors: tuple[ChannelIds, ...], inward: ChannelIds | None
    ) -> ConstantUses | None:
        """Trace a slice through the operator that outputs the constant; None if that is not possible."""
        node = self.model.proto.graph.node[producer]
        if node.op_type == "DequantizeLinear":
            return self._trace_dequantised(producer, node, factors, inward)
        if not self._is_shared_weight(name) or (name not in self.static and inward is not None):
            return None
        if name not in self.static:
            return self._trace_sized(producer, node, name, factors)
        if node.input[0] not in self.static:
            return None
        if node.op_type == "Cast":
            return self._trace(producer, 0, factors, inward)
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            back = np.argsort(order) if order else None
            turned = tuple(f.transpose(back) for f in factors)
            return self._trace(producer, 0, turned, None if inward is None else inward.transpose(back))
        return self._trace_reshaped(producer, node, name, factors, inward) if node.op_type in RESHAPING else None

    def _is_shared_weight(self, name: str) -> bool:
        """Return True if a constant has one consumer, or is a weight of all its consumers."""
        if self.model.use_counts[name] == 1 or name in self.model.overridable:
            return self.model.use_counts[name] == 1
        return all(_takes_weight(self.model, index, name) for index in self.model.consumers[name])

    def partly_sliced(self, sliced: Collection[tuple[int, str]]) -> list[str]:
        """Computed constants that only some of their consumers slice; ``sliced`` holds (node, constant).

        Outputs of a DequantizeLinear are left out: they are not sliced.
        """
        names = {name for _, name in sliced} & (self.static - self.model.origins.keys() - self.model.overridable)
        nodes, made = self.model.proto.graph.node, self.model.producers
        names = {name for name in names if nodes[made[name]].op_type != "DequantizeLinear"}
        return sorted(n for n in names if not all((index, n) in sliced for index in self.model.consumers[n]))

    def _trace_dequantised(
        self, producer: int, node: onnx.NodeProto, factors: tuple[ChannelIds, ...], inward: ChannelIds | None
    ) -> ConstantUses | None:
        """Uses of a quantised constant: its data, and scale and zero point per channel."""
        attributes = {a.name: a.i for a in node.attribute}
        if attributes.get("block_size") or any(side and side not in self.model.origins for side in node.input[1:]):
            return None
        data = self._trace(producer, 0, factors, inward)
        if data is None:
            return None
        axis = attributes.get("axis", 1)
        vectors = tuple(f.reshape(-1) for f in factors if varied_axes(f) == (axis % f.ndim,))
        sides = [k for k in range(1, len(node.input)) if node.input[k] and self.model.constant(node.input[k]).size > 1]
        more = tuple(
            ConstantUse(node=producer, slot=k, constant=self.model.origins[node.input[k]], factors=vectors)
            for k in sides
            if vectors
        )
        return ConstantUses(data.uses + more, data.rewrites)

    def _trace_reshaped(
        self, producer: int, node: onnx.NodeProto, name: str, factors: tuple[ChannelIds, ...], inward: ChannelIds | None
    ) -> ConstantUses | None:
        """Uses of a reshaped constant; None unless the slice is a product of index sets before the reshape too."""
        before, after = self._shape(node.input[0]), self._shape(name)
        lifted = [compact_ids(f.reshape(_padded_shape(f, len(after)))) for f in factors]
        back = [reshape_ids(f, after, before) for f in lifted]
        axes = [axis for f in back for axis in varied_axes(f)]
        if any(len(varied_axes(f)) > 1 for f in back) or len(axes) != len(set(axes)):
            return None
        source = self._trace(producer, 0, tuple(back), None if inward is None else reshape_ids(inward, after, before))
        if source is None or node.op_type != "Reshape":
            return source
        if node.input[1] not in self.model.origins:
            return None
        target = [int(x) for x in self.model.constant(node.input[1]).reshape(-1)]

        def rewrite(kept: KeptChannels) -> Edit:
            sizes = {axis: _kept_size(kept, f, axis, after[axis]) for f in lifted for axis in varied_axes(f)}
            return Edit(inputs={1: ShapeEdit({k: n for k, n in sizes.items() if target[k] != -1})})

        return ConstantUses(source.uses, (*source.rewrites, (producer, rewrite)))

    def _trace_sized(
        self, producer: int, node: onnx.NodeProto, name: str, factors: tuple[ChannelIds, ...]
    ) -> ConstantUses | None:
        """Uses of a value whose size depends on run-time shapes (for example a token for every sample of a batch).

        1. ConstantOfShape and Expand: the entries of their shape input are rewritten.
        2. Expand, sums and products: each operand is traced along the axes on which it is not broadcast.
        """
        after = self.observation.shapes[name]
        lifted = [compact_ids(f.reshape(_padded_shape(f, len(after)))) for f in factors]
        sizes = {axis: f for f in lifted for axis in varied_axes(f)}
        if (
            any(len(varied_axes(f)) > 1 for f in lifted)
            or node.op_type not in TRACEABLE_ELEMENTWISE | SIZE_SLOTS.keys()
        ):
            return None
        target = SIZE_SLOTS.get(node.op_type, -1)
        traced = ConstantUses(())
        for slot, operand in enumerate(node.input):
            if slot != target:
                shape = self._shape(operand)
                lead = len(after) - len(shape)
                own = {axis: f for axis, f in sizes.items() if axis >= lead and shape[axis - lead] > 1}
                cuts = tuple(f.reshape(f.shape[lead:]) for f in own.values())
                source = self._trace(producer, slot, cuts, None) if cuts else ConstantUses(())
                if source is None:
                    return None
                traced = ConstantUses(traced.uses + source.uses, traced.rewrites + source.rewrites)
        if target < 0:
            return traced
        entries = self._value(node.input[target]).tolist()
        missing = len(after) - len(entries)
        named = {axis: f for axis, f in sizes.items() if axis >= missing and entries[axis - missing] == after[axis]}

        def rewrite(kept: KeptChannels) -> Edit:
            counts = {axis - missing: _kept_size(kept, f, axis, after[axis]) for axis, f in named.items()}
            return Edit(inputs={target: ShapeEdit(counts, {k: after[k + missing] for k in counts})})

        return ConstantUses(traced.uses, (*traced.rewrites, (producer, rewrite)))

    def _value(self, name: str) -> Array:
        """Value of a constant, or of a tensor computed from constants and sizes."""
        return self.model.constant(name) if name in self.model.origins else self.observation.values[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape of a constant, or of a tensor computed from constants."""
        if name in self.model.origins:
            return self.model.shape_of(name)
        return self.observation.shapes[name]


def _takes_weight(model: Model, index: int, name: str) -> bool:
    """Return True if a node reads a constant only as the weight whose kernels are counted."""
    if index < 0:
        return False
    node = model.proto.graph.node[index]
    slot = COUNTED_WEIGHT_SLOTS.get(("" if node.domain in STANDARD_DOMAINS else node.domain, node.op_type))
    return [k for k, read in enumerate(node.input) if read == name] == [slot]


def _padded_shape(channel_ids: ChannelIds, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - channel_ids.ndim) + channel_ids.shape


def _kept_size(kept: KeptChannels, factor: ChannelIds, axis: int, size: int) -> int:
    line = any_along(kept.mask(factor), axis)
    return int(line.sum()) if line.size > 1 else size

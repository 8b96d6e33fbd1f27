"""Where a sliced constant is held: in the file, behind a run of operators on constants, or nowhere but at run time.

Weights reach their consumer directly, by Identity, dequantised, or turned and reshaped on the way; the slice is
followed back to what holds it, so that the file keeps its form.  What cannot be followed is stored as its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.labels import Labels, compact, projection, reshape, varied
from leanonnx.model import SHAPE_OPS, Model, captured
from leanonnx.rules.call import Edit, Effect, Entries, Kept, Rewrite
from leanonnx.runtime import Observation

Array = NDArray[Any]
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Use:
    """One place where a node reads a constant that is sliced.

    ``constant`` names what holds it in the file; ``inward`` gives the input channel of each element of a mixing
    operator's weight; ``computed`` is the value where the graph computes it from other constants (surgery then
    stores the value itself).
    """

    node: int
    slot: int
    constant: str
    factors: tuple[Labels, ...]
    inward: Labels | None = None
    computed: Array | None = None


@dataclass(frozen=True)
class Found:
    """Uses of one slice, and how shape constants on the way follow it."""

    uses: tuple[Use, ...]
    rewrites: tuple[tuple[int, Rewrite], ...] = ()


@dataclass(frozen=True)
class Constants:
    """Finds what holds the constants of a model."""

    model: Model
    observation: Observation

    @cached_property
    def static(self) -> frozenset[str]:
        """Values computed from constants alone (with inputs of fixed size, from their shapes too)."""
        fixed = all(d.HasField("dim_value") for v in self.model.inputs for d in v.type.tensor_type.shape.dim)
        known = set(self.model.holders)
        for node in self.model.proto.graph.node:
            reads = {n for n in [*node.input, *captured(node)] if n}
            shaped = fixed and node.op_type in SHAPE_OPS
            if reads and (shaped or reads <= known) and node.output[0] not in self.model.free:
                known.update(node.output)
        return frozenset(known)

    def uses(self, index: int, effect: Effect) -> Found | None:
        """Where the slices of an effect are held; None if a sliced constant depends on run-time shapes."""
        inward = {mix.slot: mix.inward for mix in effect.mixes}
        uses: list[Use] = []
        rewrites: list[tuple[int, Rewrite]] = []
        for cut in effect.slices:
            found = self._follow(index, cut.slot, cut.factors, inward.get(cut.slot))
            if found is None:
                return None
            uses += found.uses
            rewrites += found.rewrites
        return Found(tuple(uses), tuple(rewrites))

    def _follow(self, index: int, slot: int, factors: tuple[Labels, ...], inward: Labels | None) -> Found | None:
        """Follow one slice from the input of a node back to its holder."""
        name = self.model.proto.graph.node[index].input[slot]
        if name in self.model.origins:
            return Found((Use(index, slot, self.model.origins[name], factors, inward),))
        if name in self.static:
            behind = self._behind(self.model.producers[name], name, factors, inward)
            stored = Use(index, slot, name, factors, inward, self.observation.values[name])
            return behind or Found((stored,))
        return None if any(varied(f) for f in factors) else Found(())

    def _behind(self, producer: int, name: str, factors: tuple[Labels, ...], inward: Labels | None) -> Found | None:
        """Follow a slice through the operator that puts the constant out; None where that is not possible."""
        node = self.model.proto.graph.node[producer]
        if node.op_type == "DequantizeLinear":
            return self._dequantised(producer, node, factors, inward)
        if self.model.readers[name] != 1 or node.input[0] not in self.static:
            return None
        if node.op_type == "Cast":
            return self._follow(producer, 0, factors, inward)
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            back = np.argsort(order) if order else None
            turned = tuple(f.transpose(back) for f in factors)
            return self._follow(producer, 0, turned, None if inward is None else inward.transpose(back))
        return self._reshaped(producer, node, name, factors, inward) if node.op_type in RESHAPES else None

    def _dequantised(
        self, producer: int, node: onnx.NodeProto, factors: tuple[Labels, ...], inward: Labels | None
    ) -> Found | None:
        """A quantised constant: its data, and scale and zero point per channel."""
        attributes = {a.name: a.i for a in node.attribute}
        if attributes.get("block_size") or any(side and side not in self.model.origins for side in node.input[1:]):
            return None
        data = self._follow(producer, 0, factors, inward)
        if data is None:
            return None
        axis = attributes.get("axis", 1)
        vectors = tuple(f.reshape(-1) for f in factors if varied(f) == (axis % f.ndim,))
        sides = [k for k in range(1, len(node.input)) if node.input[k] and self.model.constant(node.input[k]).size > 1]
        more = tuple(Use(producer, k, self.model.origins[node.input[k]], vectors) for k in sides if vectors)
        return Found(data.uses + more, data.rewrites)

    def _reshaped(
        self, producer: int, node: onnx.NodeProto, name: str, factors: tuple[Labels, ...], inward: Labels | None
    ) -> Found | None:
        """A constant that is reshaped: possible where the slice stays a product of index sets."""
        before, after = self._shape(node.input[0]), self._shape(name)
        back = [reshape(compact(f.reshape(_lifted(f, len(after)))), after, before) for f in factors]
        axes = [axis for f in back for axis in varied(f)]
        if any(len(varied(f)) > 1 for f in back) or len(axes) != len(set(axes)):
            return None
        source = self._follow(producer, 0, tuple(back), None if inward is None else reshape(inward, after, before))
        if source is None or node.op_type != "Reshape":
            return source
        if node.input[1] not in self.model.origins:
            return None
        target = [int(x) for x in self.model.constant(node.input[1]).reshape(-1)]

        def rewrite(kept: Kept) -> Edit:
            sizes = {axis: _count(kept, f, axis, after[axis]) for f in factors for axis in varied(f)}
            return Edit(inputs={1: Entries({k: n for k, n in sizes.items() if target[k] != -1})})

        return Found(source.uses, (*source.rewrites, (producer, rewrite)))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape of a constant or of a value computed from constants."""
        if name in self.model.origins:
            return self.model.constant(name).shape
        return self.observation.shapes[name]


def _lifted(labels: Labels, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - labels.ndim) + labels.shape


def _count(kept: Kept, factor: Labels, axis: int, size: int) -> int:
    line = projection(kept.mask(factor), axis)
    return int(line.sum()) if line.size > 1 else size

"""Patch → model: slice every constant, rewrite attributes and shapes, leave out what is dead.

The edit is made on a copy of the protobuf in one go, so that whatever the patch does not name (metadata, doc
strings, quantisation annotations, names) stays as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.formats import HALVES, graphs
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured, fresh_name
from leanonnx.graph.noops import Types
from leanonnx.graph.storage import copy_fields
from leanonnx.graph.view import FREE_INITIALIZERS, unneeded
from leanonnx.numeric.arrays import Array
from leanonnx.rules.call import Select, ShapeEdit
from leanonnx.surgery.patch import InputSlot, Maker, Masking, Patch

HALF = {np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in HALVES}
WHERE = 9
"""Operator set that brought the operator Where."""


def apply(model: Model, patch: Patch) -> onnx.ModelProto:
    """Carry out a patch on a copy of the model.

    Raises:
        ValueError: the patch does not fit the model: it names a node that is not there, or puts an array of another
            type or rank in the place of a constant.
    """
    return _Operation(model, patch).result()


class _Operation:
    """One application of a patch: nodes are copied and edited, constants replaced or cloned, the dead left out."""

    def __init__(self, model: Model, patch: Patch) -> None:
        self.model, self.patch, self.types = model, patch, Types(model.proto)
        _check_nodes(patch, len(model.proto.graph.node))
        self.names = _all_names(model.proto.graph)
        self.replaced: dict[str, Maker] = {}
        self.added: dict[str, Maker] = {}
        self.reads: dict[InputSlot, str] = {}
        self._assign()
        self.nodes = self._edited_nodes()

    def _assign(self) -> None:
        """Give each changed constant a name: its own where every reader agrees, else a clone."""
        readers = self.model.use_counts
        wanted: dict[str, list[InputSlot]] = {}
        for place in self.patch.constants:
            wanted.setdefault(self._holder(place), []).append(place)
        for name, places in wanted.items():
            taken = not name or len(places) < readers.get(name, 0)
            for group in self._alike(places):
                if taken:
                    stem = name or f"{self.model.proto.graph.node[group[0][0]].output[0]}_constant"
                    clone = fresh_name(self.names, stem)
                    self.added[clone] = self.patch.constants[group[0]]
                    self.reads |= dict.fromkeys(group, clone)
                else:
                    self.replaced[name] = self.patch.constants[group[0]]
                    taken = True

    def _alike(self, places: list[InputSlot]) -> list[list[InputSlot]]:
        """Places that get equal arrays, together."""
        if len(places) == 1:
            return [places]
        groups: dict[bytes, list[InputSlot]] = {}
        for place in places:
            groups.setdefault(_fingerprint(self.patch.constants[place]()), []).append(place)
        return list(groups.values())

    def _holder(self, place: InputSlot) -> str:
        inputs = self.model.proto.graph.node[place[0]].input
        name = inputs[place[1]] if place[1] < len(inputs) else ""
        return self.model.origins.get(name, name)

    def _edited_nodes(self) -> list[onnx.NodeProto]:
        nodes: list[onnx.NodeProto] = []
        for index, original in enumerate(self.model.proto.graph.node):
            node = onnx.NodeProto()
            node.CopyFrom(original)
            _set_attributes(node, self.patch.attributes.get(index, {}))
            before = self._edit_inputs(index, node)
            after = self._edit_outputs(index, node)
            if node.op_type == "Constant" and node.output[0] in self.replaced:
                del node.attribute[:]
                node.attribute.append(
                    onnx.helper.make_attribute("value", _tensor(self.replaced[node.output[0]](), node.output[0]))
                )
            nodes += [*before, node, *after]
        return nodes

    def _edit_inputs(self, index: int, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        helpers: list[onnx.NodeProto] = []
        dropped = []
        changed = {*self.reads, *self.patch.entries, *self.patch.picks, *self.patch.masks}
        for place in sorted(p for p in changed if p[0] == index):
            slot = place[1]
            if place in self.patch.picks and not self.patch.picks[place].positions.size:
                dropped.append(slot)
            elif place in self.reads:
                node.input.extend([""] * (slot + 1 - len(node.input)))
                node.input[slot] = self.reads[place]
            elif place in self.patch.entries:
                node.input[slot] = self._overlay(node.input[slot], self.patch.entries[place], helpers)
            elif place in self.patch.masks:
                node.input[slot] = self._masked(node.input[slot], self.patch.masks[place], helpers)
            else:
                node.input[slot] = self._gather(node.input[slot], self.patch.picks[place], helpers)
        for slot in reversed(dropped):
            del node.input[slot]
        return helpers

    def _edit_outputs(self, index: int, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        helpers: list[onnx.NodeProto] = []
        for slot, name in enumerate(node.output):
            if (index, slot) in self.patch.outputs:
                node.output[slot] = fresh_name(self.names, name)
                self._overlay(node.output[slot], self.patch.outputs[index, slot], helpers)
                helpers[-1].output[0] = name
            elif (index, slot) in self.patch.scales:
                node.output[slot] = fresh_name(self.names, name)
                self._scaled(node.output[slot], self.patch.scales[index, slot], name, helpers)
                helpers[-1].output[0] = name
            elif name in self.patch.gathers:
                run, indices = self.patch.gathers[name]
                node.output[slot] = fresh_name(self.names, name)
                chosen = self._constant(indices, f"{name}_indices")
                helpers.append(
                    onnx.helper.make_node("Gather", [run.source, chosen], [name], name=f"{name}_gather", axis=run.axis)
                )
            elif name in self.replaced and node.op_type != "Constant":
                node.output[slot] = fresh_name(self.names, name)
        return helpers

    def _overlay(self, vector: str, change: ShapeEdit, helpers: list[onnx.NodeProto]) -> str:
        """New entries of a computed integer vector.

        1. Sizes of axes are scaled by a fraction, so that they follow the axes that the model leaves free.
        2. All other entries are replaced by numbers, through a Where.
        """
        scaled = {k: Fraction(value, change.before[k]) for k, value in change.values.items() if change.before.get(k)}
        for op, numbers in (
            ("Mul", {k: share.numerator for k, share in scaled.items()}),
            ("Div", {k: share.denominator for k, share in scaled.items()}),
        ):
            if any(number != 1 for number in numbers.values()):
                factors = _entries(change, numbers, 1)
                vector = self._added(op, [vector, self._constant(factors, f"{vector}_{op.lower()}")], vector, helpers)
        values = {k: value for k, value in change.values.items() if k not in scaled}
        if values:
            mask = _entries(change, dict.fromkeys(values, 1), 0).astype(bool)
            inputs = [self._constant(mask, f"{vector}_mask")]
            inputs += [self._constant(_entries(change, values, 0), f"{vector}_sizes"), vector]
            vector = self._added("Where", inputs, vector, helpers)
        return vector

    def _added(self, op: str, inputs: list[str], stem: str, helpers: list[onnx.NodeProto], **attributes: Any) -> str:
        """A new node; the name of its output."""
        output = fresh_name(self.names, stem)
        helpers.append(onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def _masked(self, tensor: str, masking: Masking, helpers: list[onnx.NodeProto]) -> str:
        """A tensor with zeros in place of what a mask leaves out; NaN and infinity are left out as well."""
        mask = np.asarray(masking.mask)
        if self.model.opset < WHERE:
            kind = self._kind(tensor) if masking.zero is None else masking.zero.dtype
            factors = self._constant(mask.astype(kind), f"{tensor}_mask")
            return self._added("Mul", [tensor, factors], tensor, helpers)
        stem = f"{tensor}_zero"
        zero = self._number(0.0, tensor, stem) if masking.zero is None else self._constant(masking.zero, stem)
        return self._added("Where", [self._constant(mask, f"{tensor}_mask"), tensor, zero], tensor, helpers)

    def _scaled(self, tensor: str, factor: float, like: str, helpers: list[onnx.NodeProto]) -> str:
        """A tensor multiplied by a number, which half precision would not hold: there float32 is taken for it."""
        kind = self._kind(like)
        if kind not in HALF:
            return self._added("Mul", [tensor, self._number(factor, like, f"{like}_scale")], tensor, helpers)
        wide = self._added("Cast", [tensor], tensor, helpers, to=onnx.TensorProto.FLOAT)
        number = self._constant(np.asarray(factor, np.float32), f"{like}_scale")
        wide = self._added("Mul", [wide, number], tensor, helpers)
        return self._added("Cast", [wide], tensor, helpers, to=onnx.helper.np_dtype_to_tensor_dtype(kind))

    def _number(self, value: float, like: str, stem: str) -> str:
        """A constant of the element type of a tensor."""
        return self._constant(np.asarray(value).astype(self._kind(like)), stem)

    def _kind(self, tensor: str) -> np.dtype[Any]:
        found = self.types.found.get(tensor)
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(found.elem_type if found else onnx.TensorProto.FLOAT))

    def _gather(self, tensor: str, pick: Select, helpers: list[onnx.NodeProto]) -> str:
        output = fresh_name(self.names, tensor)
        chosen = self._constant(pick.positions.astype(np.int64), f"{tensor}_read")
        helpers.append(onnx.helper.make_node("Gather", [tensor, chosen], [output], name=output, axis=pick.axis))
        return output

    def _constant(self, array: Array, stem: str) -> str:
        name = fresh_name(self.names, stem)
        self.added[name] = lambda: array
        return name

    def result(self) -> onnx.ModelProto:
        """The edited model; nodes that no output needs are left out, with their constants."""
        source = self.model.proto
        dead = unneeded(self.nodes, source.graph)
        nodes = [node for node in self.nodes if not dead.issuperset(n for n in node.output if n)]
        result = onnx.ModelProto()
        copy_fields(source, result, leave={"graph"})
        copy_fields(source.graph, result.graph, leave={"node", "initializer", "input", "value_info"})
        result.graph.node.extend(nodes)
        self._fill_constants(result.graph)
        produced = {name for node in nodes for name in node.output} & self.model.free - self.patch.shrunk
        result.graph.value_info.extend(v for v in source.graph.value_info if v.name in produced)
        return result

    def _fill_constants(self, graph: onnx.GraphProto) -> None:
        """Initializers, and the graph inputs that list them, with their new shapes."""
        source = self.model.proto.graph
        read = {name for node in graph.node for name in [*node.input, *captured(node)]}
        read |= {value.name for value in graph.output}
        before = {name for node in source.node for name in [*node.input, *captured(node)]}
        kept = {t.name for t in source.initializer if t.name in read or t.name not in before}
        for tensor in source.initializer:
            if tensor.name in kept:
                graph.initializer.append(
                    _tensor(self.replaced[tensor.name](), tensor) if tensor.name in self.replaced else tensor
                )
        names = {t.name for t in source.initializer}
        sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        for value in source.input:
            if value.name in kept or value.name not in names:
                graph.input.append(_resized(value, sizes.get(value.name)))
        held = set(self.model.holders)
        computed = {name: make for name, make in self.replaced.items() if name not in held}
        for name, make in sorted({**self.added, **computed}.items()):
            if name in read:
                graph.initializer.append(_tensor(make(), name))
                if self.model.proto.ir_version < FREE_INITIALIZERS:
                    graph.input.append(_declared(graph.initializer[-1]))


def _entries(change: ShapeEdit, values: Mapping[int, int], other: int) -> Array:
    """A vector of these values, and of ``other`` in all other places."""
    vector = np.full(change.size, other, np.int64)
    vector[list(values)] = list(values.values())
    return vector


def _declared(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    """A graph input that lists an initializer."""
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _fingerprint(array: Array) -> bytes:
    """Equal for equal arrays."""
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array).data if array.dtype.kind in "fiub" else array.tobytes())
    return digest.digest()


def _all_names(graph: onnx.GraphProto) -> set[str]:
    """Every value name of a graph and its subgraphs."""
    names: set[str] = set()
    for part in graphs(graph):
        names |= {t.name for t in part.initializer} | {v.name for v in [*part.input, *part.output]}
        names.update(name for node in part.node for name in [*node.input, *node.output])
    return names


def _set_attributes(node: onnx.NodeProto, changes: Any) -> None:
    for name, value in changes.items():
        for index, attribute in enumerate(node.attribute):
            if attribute.name == name:
                del node.attribute[index]
                break
        if value is not None:
            node.attribute.append(onnx.helper.make_attribute(name, value))


def _check_nodes(patch: Patch, count: int) -> None:
    """Refuse a patch that names nodes which are not there."""
    places = (*patch.constants, *patch.entries, *patch.outputs, *patch.picks, *patch.scales, *patch.masks)
    strange = ({node for node, _ in places} | set(patch.attributes)) - set(range(count))
    if strange:
        raise ValueError(f"patch of nodes {sorted(strange)}, where there are {count}")


def _check_fits(array: Array, like: onnx.TensorProto) -> None:
    """Refuse an array that cannot stand in place of a constant: axes shrink, only one number may become several."""
    kind, sizes = onnx.helper.tensor_dtype_to_np_dtype(like.data_type), list(like.dims)
    fits = array.ndim == len(sizes) and all(n <= size or size == 1 for n, size in zip(array.shape, sizes, strict=True))
    if array.dtype != kind or not (fits or not sizes):
        raise ValueError(f"patch of '{like.name}': {array.dtype} {list(array.shape)} in place of {kind} {sizes}")


def _tensor(array: Array, like: onnx.TensorProto | str) -> onnx.TensorProto:
    """A tensor named and typed as another, or under a name alone."""
    if isinstance(like, str):
        return numpy_helper.from_array(np.asarray(array, order="C"), like)
    _check_fits(array, like)
    tensor = numpy_helper.from_array(np.asarray(array, order="C"), like.name)
    tensor.data_type = like.data_type
    tensor.doc_string = like.doc_string
    return tensor


def _resized(value: onnx.ValueInfoProto, sizes: list[int] | None) -> onnx.ValueInfoProto:
    """A graph input that lists an initializer, with the initializer's new shape."""
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    if sizes is not None:
        del result.type.tensor_type.shape.dim[:]
        for size in sizes:
            result.type.tensor_type.shape.dim.add(dim_value=size)
    return result

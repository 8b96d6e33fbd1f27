"""Apply a patch to a model: slice constants, rewrite attributes and shapes, remove dead nodes.

The patch is applied to a copy of the protobuf in one pass, so everything that it does not name (metadata, doc
strings, quantisation annotations, names) is preserved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.formats import HALF_TYPES, value_names
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured_names, fresh_name
from leanonnx.graph.noops import Types
from leanonnx.graph.storage import copy_fields
from leanonnx.graph.view import FREE_INITIALIZERS, unused_outputs
from leanonnx.numeric.arrays import Array
from leanonnx.rules.call import Select, ShapeEdit
from leanonnx.surgery.patch import InputSlot, Maker, Masking, Patch

HALF_DTYPES = {np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in HALF_TYPES}
WHERE_OPSET = 9
"""Operator set that introduced the operator Where."""


def apply_patch(model: Model, patch: Patch) -> onnx.ModelProto:
    """Apply a patch to a copy of the model.

    Raises:
        ValueError: the patch does not fit the model: it names a node that does not exist, or replaces a constant by an
            array of another type or rank.
    """
    return _PatchApplication(model, patch).result()


class _PatchApplication:
    """One application of a patch: copies and edits nodes, replaces or clones constants, drops dead nodes."""

    def __init__(self, model: Model, patch: Patch) -> None:
        self.model, self.patch, self.types = model, patch, Types(model.proto)
        _check_nodes(patch, len(model.proto.graph.node))
        self.names = value_names(model.proto.graph)
        self.replaced: dict[str, Maker] = {}
        self.added: dict[str, Maker] = {}
        self.reads: dict[InputSlot, str] = {}
        self._assign()
        self.nodes = self._edit_nodes()

    def _assign(self) -> None:
        """Assign each changed constant a name: its own if all consumers need the same value, else that of a clone."""
        use_counts = self.model.use_counts
        wanted: dict[str, list[InputSlot]] = {}
        for place in self.patch.constants:
            wanted.setdefault(self._holder(place), []).append(place)
        for name, places in wanted.items():
            taken = not name or len(places) < use_counts.get(name, 0)
            for group in self._equal_slots(places):
                if taken:
                    stem = name or f"{self.model.proto.graph.node[group[0][0]].output[0]}_constant"
                    clone = fresh_name(self.names, stem)
                    self.added[clone] = self.patch.constants[group[0]]
                    self.reads |= dict.fromkeys(group, clone)
                else:
                    self.replaced[name] = self.patch.constants[group[0]]
                    taken = True

    def _equal_slots(self, places: list[InputSlot]) -> list[list[InputSlot]]:
        """Group the input slots that get equal arrays; each alone if all get copies."""
        if len(places) == 1 or self.patch.copies:
            return [[place] for place in places]
        groups: dict[bytes, list[InputSlot]] = {}
        for place in places:
            groups.setdefault(_fingerprint(self.patch.constants[place]()), []).append(place)
        return list(groups.values())

    def _holder(self, place: InputSlot) -> str:
        inputs = self.model.proto.graph.node[place[0]].input
        name = inputs[place[1]] if place[1] < len(inputs) else ""
        return self.model.origins.get(name, name)

    def _edit_nodes(self) -> list[onnx.NodeProto]:
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
        changed = {*self.reads, *self.patch.shape_edits, *self.patch.selects, *self.patch.masks}
        for place in sorted(p for p in changed if p[0] == index):
            slot = place[1]
            if place in self.patch.selects and not self.patch.selects[place].positions.size:
                dropped.append(slot)
            elif place in self.reads:
                node.input.extend([""] * (slot + 1 - len(node.input)))
                node.input[slot] = self.reads[place]
            elif place in self.patch.shape_edits:
                node.input[slot] = self._replace_entries(node.input[slot], self.patch.shape_edits[place], helpers)
            elif place in self.patch.masks:
                node.input[slot] = self._mask_tensor(node.input[slot], self.patch.masks[place], helpers)
            else:
                node.input[slot] = self._gather(node.input[slot], self.patch.selects[place], helpers)
        for slot in reversed(dropped):
            del node.input[slot]
        return helpers

    def _edit_outputs(self, index: int, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        helpers: list[onnx.NodeProto] = []
        for slot, name in enumerate(node.output):
            if (index, slot) in self.patch.output_edits:
                node.output[slot] = fresh_name(self.names, name)
                self._replace_entries(node.output[slot], self.patch.output_edits[index, slot], helpers)
                helpers[-1].output[0] = name
            elif (index, slot) in self.patch.scales:
                node.output[slot] = fresh_name(self.names, name)
                self._scale_tensor(node.output[slot], self.patch.scales[index, slot], name, helpers)
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

    def _replace_entries(self, vector: str, change: ShapeEdit, helpers: list[onnx.NodeProto]) -> str:
        """Replace entries of a computed integer vector; returns the name of the result.

        1. Axis sizes are scaled by a fraction, so that they follow the axes that the model leaves free.
        2. All other entries are replaced by constants, through a Where.
        """
        scaled = {
            k: Fraction(value, change.original_sizes[k])
            for k, value in change.values.items()
            if change.original_sizes.get(k)
        }
        for op, numbers in (
            ("Mul", {k: share.numerator for k, share in scaled.items()}),
            ("Div", {k: share.denominator for k, share in scaled.items()}),
        ):
            if any(number != 1 for number in numbers.values()):
                factors = _entry_vector(change, numbers, 1)
                vector = self._add_node(
                    op, [vector, self._constant(factors, f"{vector}_{op.lower()}")], vector, helpers
                )
        values = {k: value for k, value in change.values.items() if k not in scaled}
        if values:
            mask = _entry_vector(change, dict.fromkeys(values, 1), 0).astype(bool)
            inputs = [self._constant(mask, f"{vector}_mask")]
            inputs += [self._constant(_entry_vector(change, values, 0), f"{vector}_sizes"), vector]
            vector = self._add_node("Where", inputs, vector, helpers)
        return vector

    def _add_node(self, op: str, inputs: list[str], stem: str, helpers: list[onnx.NodeProto], **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        output = fresh_name(self.names, stem)
        helpers.append(onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def _mask_tensor(self, tensor: str, masking: Masking, helpers: list[onnx.NodeProto]) -> str:
        """Zero the elements of a tensor outside a mask, NaN and infinity included; returns the name of the result."""
        mask = np.asarray(masking.mask)
        if self.model.opset < WHERE_OPSET:
            kind = self._dtype_of(tensor) if masking.zero is None else masking.zero.dtype
            factors = self._constant(mask.astype(kind), f"{tensor}_mask")
            return self._add_node("Mul", [tensor, factors], tensor, helpers)
        stem = f"{tensor}_zero"
        zero = self._scalar(0.0, tensor, stem) if masking.zero is None else self._constant(masking.zero, stem)
        return self._add_node("Where", [self._constant(mask, f"{tensor}_mask"), tensor, zero], tensor, helpers)

    def _scale_tensor(self, tensor: str, factor: float, like: str, helpers: list[onnx.NodeProto]) -> str:
        """Multiply a tensor by a number, in float32 for half precision, which may not represent it."""
        kind = self._dtype_of(like)
        if kind not in HALF_DTYPES:
            return self._add_node("Mul", [tensor, self._scalar(factor, like, f"{like}_scale")], tensor, helpers)
        wide = self._add_node("Cast", [tensor], tensor, helpers, to=onnx.TensorProto.FLOAT)
        number = self._constant(np.asarray(factor, np.float32), f"{like}_scale")
        wide = self._add_node("Mul", [wide, number], tensor, helpers)
        return self._add_node("Cast", [wide], tensor, helpers, to=onnx.helper.np_dtype_to_tensor_dtype(kind))

    def _scalar(self, value: float, like: str, stem: str) -> str:
        """Add a scalar constant of the element type of ``like``; returns its name."""
        return self._constant(np.asarray(value).astype(self._dtype_of(like)), stem)

    def _dtype_of(self, tensor: str) -> np.dtype[Any]:
        known = self.types.inferred.get(tensor)
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(known.elem_type if known else onnx.TensorProto.FLOAT))

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
        """Return the edited model without the nodes and constants that no output needs."""
        source = self.model.proto
        dead = unused_outputs(self.nodes, source.graph)
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
        """Add the initializers, and the graph inputs that list them, with their new shapes."""
        source = self.model.proto.graph
        read = {name for node in graph.node for name in [*node.input, *captured_names(node)]}
        read |= {value.name for value in graph.output}
        read_before = {name for node in source.node for name in [*node.input, *captured_names(node)]}
        kept = {t.name for t in source.initializer if t.name in read or t.name not in read_before}
        for tensor in source.initializer:
            if tensor.name in kept:
                graph.initializer.append(
                    _tensor(self.replaced[tensor.name](), tensor) if tensor.name in self.replaced else tensor
                )
        names = {t.name for t in source.initializer}
        sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        for value in source.input:
            if value.name in kept or value.name not in names:
                graph.input.append(_resize_input(value, sizes.get(value.name)))
        initial = set(self.model.holders)
        computed = {name: make for name, make in self.replaced.items() if name not in initial}
        for name, make in sorted({**self.added, **computed}.items()):
            if name in read:
                graph.initializer.append(_tensor(make(), name))
                if self.model.proto.ir_version < FREE_INITIALIZERS:
                    graph.input.append(_input_for(graph.initializer[-1]))


def _entry_vector(change: ShapeEdit, values: Mapping[int, int], other: int) -> Array:
    """Vector of the entries ``values``, and ``other`` everywhere else."""
    vector = np.full(change.length, other, np.int64)
    vector[list(values)] = list(values.values())
    return vector


def _input_for(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    """Graph input that lists an initializer."""
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _fingerprint(array: Array) -> bytes:
    """Hash of shape, type and content: equal for equal arrays."""
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    digest.update(array.tobytes())
    return digest.digest()


def _set_attributes(node: onnx.NodeProto, changes: Any) -> None:
    for name, value in changes.items():
        for index, attribute in enumerate(node.attribute):
            if attribute.name == name:
                del node.attribute[index]
                break
        if value is not None:
            node.attribute.append(onnx.helper.make_attribute(name, value))


def _check_nodes(patch: Patch, count: int) -> None:
    """Reject a patch that names nodes which do not exist."""
    places = (*patch.constants, *patch.shape_edits, *patch.output_edits, *patch.selects, *patch.scales, *patch.masks)
    strange = ({node for node, _ in places} | set(patch.attributes)) - set(range(count))
    if strange:
        raise ValueError(f"the patch names nodes {sorted(strange)}, but the model has {count} nodes")


def _check_fits(array: Array, like: onnx.TensorProto) -> None:
    """Reject an array that cannot replace a constant: axes may only shrink, except that size 1 may grow."""
    kind, sizes = onnx.helper.tensor_dtype_to_np_dtype(like.data_type), list(like.dims)
    fits = array.ndim == len(sizes) and all(n <= size or size == 1 for n, size in zip(array.shape, sizes, strict=True))
    if array.dtype != kind or not (fits or not sizes):
        raise ValueError(f"patch of '{like.name}': got {array.dtype} {list(array.shape)}, expected {kind} {sizes}")


def _tensor(array: Array, like: onnx.TensorProto | str) -> onnx.TensorProto:
    """Tensor of an array, with the name and type of ``like``, or with ``like`` as its name."""
    if isinstance(like, str):
        return numpy_helper.from_array(np.asarray(array, order="C"), like)
    _check_fits(array, like)
    tensor = numpy_helper.from_array(np.asarray(array, order="C"), like.name)
    tensor.data_type = like.data_type
    tensor.doc_string = like.doc_string
    return tensor


def _resize_input(value: onnx.ValueInfoProto, sizes: list[int] | None) -> onnx.ValueInfoProto:
    """Copy of a graph input that lists an initializer, with the initializer's new shape."""
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    if sizes is not None:
        del result.type.tensor_type.shape.dim[:]
        for size in sizes:
            result.type.tensor_type.shape.dim.add(dim_value=size)
    return result

"""Random corruptions of a model, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.seed_models import MODEL

HUGE = (1 << 31, (1 << 31) - 1, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 100_000, 65_536)
ODD = (0, -1, -2, -(1 << 31), -(1 << 63), 1, 2, 3, 5, *HUGE)
FLOATS = (0.0, -1.0, 1e38, float("nan"), float("inf"), float("-inf"))
OPERATORS = (
    *("Relu", "Conv", "ConvTranspose", "Gemm", "MatMul", "Reshape", "Concat", "Split", "Slice", "Gather", "Transpose"),
    *("Pad", "Resize", "Expand", "Tile", "Softmax", "BatchNormalization", "Shape", "ConstantOfShape", "Loop", "If"),
    *("Identity", "Cast", "LSTM", "TopK", "NonZero", "Range", "Flatten", "Unsqueeze", "QLinearConv", "", "Nonsense"),
)
NOT_TEXT = b"\xff\xfe\x80"


class RandomChoices:
    """Random choices among the parts of one model."""

    def __init__(self, proto: onnx.ModelProto, rng: np.random.Generator) -> None:
        self.proto, self.rng = proto, rng
        self.graph = self.one_of([*_graphs(proto.graph), *[proto.graph] * 2])

    def one_of(self, items: Any) -> Any:
        """One of some items; raises NotApplicable if there are none."""
        if not len(items):
            raise NotApplicable
        return items[int(self.rng.integers(len(items)))]

    def odd(self) -> int:
        return int(self.one_of(ODD))

    @property
    def node(self) -> onnx.NodeProto:
        found = [node for node in self.graph.node if node.op_type]
        return self.one_of([*found, *(n for f in self.proto.functions for n in f.node)])

    @property
    def attribute(self) -> onnx.AttributeProto:
        return self.one_of([a for node in self.graph.node for a in node.attribute])

    @property
    def tensor(self) -> TensorProto:
        inner = [a.t for node in self.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
        return self.one_of([*self.graph.initializer, *inner])

    @property
    def value(self) -> onnx.ValueInfoProto:
        return self.one_of([*self.graph.input, *self.graph.output, *self.graph.value_info])

    @property
    def name(self) -> str:
        names = [n for node in self.graph.node for n in [*node.input, *node.output]]
        return str(self.one_of([*names, *(t.name for t in self.graph.initializer), "", "ghost"]))

    @property
    def slots(self) -> Any:
        """The inputs or the outputs of a node that has some."""
        return self.one_of([s for node in self.graph.node for s in (node.input, node.output) if len(s)])


class NotApplicable(Exception):
    """This corruption does not apply to this model."""


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def attribute_removed(s: RandomChoices) -> None:
    node = s.one_of([n for n in s.graph.node if n.attribute])
    del node.attribute[int(s.rng.integers(len(node.attribute)))]


def attribute_value(s: RandomChoices) -> None:
    a = s.attribute
    if a.ints and s.rng.random() < 0.6:
        a.ints[int(s.rng.integers(len(a.ints)))] = s.odd()
    elif a.ints:
        changed = s.one_of(([], list(a.ints)[:-1], [*a.ints, 1], [s.odd()] * len(a.ints), [0] * 10_000))
        del a.ints[:]
        a.ints.extend(changed)
    elif a.type == onnx.AttributeProto.FLOAT:
        a.f = s.one_of(FLOATS)
    elif a.type == onnx.AttributeProto.STRING:
        a.s = s.one_of((b"", b"bogus", NOT_TEXT, b"x" * 10_000))
    else:
        a.i = s.odd()


def attribute_type(s: RandomChoices) -> None:
    s.attribute.type = s.one_of((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11))


def attribute_name(s: RandomChoices) -> None:
    s.attribute.name = s.one_of(("", "axis", "group", "pads", "value", "bogus"))


def attribute_added(s: RandomChoices) -> None:
    name = s.one_of(("axis", "group", "pads", "kernel_shape", "axes", "alpha", "to", "num_outputs"))
    value = s.one_of((s.odd(), [s.odd()], 0.5, "text", [1, 1, 1, 1]))
    s.node.attribute.append(helper.make_attribute(name, value))


def tensor_dims(s: RandomChoices) -> None:
    t = s.tensor
    if t.dims and s.rng.random() < 0.7:
        t.dims[int(s.rng.integers(len(t.dims)))] = s.odd()
    else:
        changed = s.one_of(([], [*t.dims, 1], [0], list(t.dims)[::-1], [1] * 70, [1 << 32, 1 << 32], [-1, -1]))
        del t.dims[:]
        t.dims.extend(changed)


def tensor_type(s: RandomChoices) -> None:
    s.tensor.data_type = s.one_of((*range(30), 99, (1 << 31) - 1, -1))


def tensor_data(s: RandomChoices) -> None:
    t = s.tensor
    size = len(t.raw_data)
    t.raw_data = s.one_of((b"", t.raw_data[:-1], t.raw_data + b"\0", t.raw_data[: size // 2], s.rng.bytes(size)))


def tensor_numbers(s: RandomChoices) -> None:
    """Numbers beside or instead of bytes."""
    t = s.tensor
    if s.rng.random() < 0.5:
        t.ClearField("raw_data")
    t.float_data.extend([1.0] * s.one_of((1, 3, 10_000)))
    if s.rng.random() < 0.3:
        t.string_data.append(NOT_TEXT)
    if s.rng.random() < 0.3:
        t.segment.begin, t.segment.end = s.odd() % (1 << 62), s.odd() % (1 << 62)


def tensor_values(s: RandomChoices) -> None:
    t = s.tensor
    kind = s.one_of((np.float32, np.int64))
    if len(t.raw_data) % kind().itemsize or not t.raw_data:
        raise NotApplicable
    array = np.frombuffer(t.raw_data, kind).copy()
    array[s.rng.integers(array.size, size=3)] = s.one_of(FLOATS if kind is np.float32 else ODD)
    t.raw_data = array.tobytes()


def tensor_external(s: RandomChoices) -> None:
    t = s.tensor
    if t.external_data and s.rng.random() < 0.7:
        entry = s.one_of(t.external_data)
        places = ("", ".", "..", "../x", "/etc/passwd", "/dev/zero", MODEL, "ghost", "a" * 300, "a\0b", "~/x")
        numbers = ("", "abc", "-1", "1e3", "99999999999999999999", *map(str, ODD))
        entry.value = s.one_of(places if entry.key == "location" else numbers)
        entry.key = s.one_of((entry.key, entry.key, entry.key, "location", "bogus"))
    elif t.external_data:
        del t.external_data[int(s.rng.integers(len(t.external_data)))]
    else:
        t.data_location = TensorProto.EXTERNAL
        for key, value in (("location", MODEL), ("offset", str(s.odd())), ("length", str(s.odd()))):
            if s.rng.random() < 0.8:
                t.external_data.add(key=key, value=value)


def tensor_sparse(s: RandomChoices) -> None:
    """Make a constant sparse, with indices that may be out of range."""
    t = s.one_of(s.graph.initializer)
    sparse = s.graph.sparse_initializer.add()
    sparse.values.CopyFrom(helper.make_tensor(t.name, TensorProto.FLOAT, [2], [1.0, 2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [2], [0, abs(s.odd()) % (1 << 62)]))
    sparse.dims.extend(t.dims if s.rng.random() < 0.5 else [s.odd(), s.odd()])
    if s.rng.random() < 0.8:
        s.graph.initializer.remove(t)


def declared_size(s: RandomChoices) -> None:
    value = s.value
    dims = value.type.tensor_type.shape.dim
    if dims and s.rng.random() < 0.7:
        s.one_of(dims).dim_value = s.odd()
    elif dims and s.rng.random() < 0.5:
        s.one_of(dims).dim_param = s.one_of(("", "N", "x" * 1000))
    elif s.rng.random() < 0.5:
        dims.add(dim_value=s.odd())
    else:
        value.type.tensor_type.ClearField("shape")


def declared_type(s: RandomChoices) -> None:
    value = s.value
    kind = s.one_of(("elem", "elem", "none", "sequence", "optional", "map", "sparse"))
    if kind == "elem":
        value.type.tensor_type.elem_type = s.one_of((*range(26), 99, -1))
        return
    value.ClearField("type")
    if kind == "sequence":
        value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "optional":
        value.type.optional_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    elif kind == "map":
        value.type.map_type.key_type = TensorProto.INT64
    elif kind == "sparse":
        value.type.sparse_tensor_type.elem_type = TensorProto.FLOAT


def value_name(s: RandomChoices) -> None:
    s.value.name = s.name


def value_lost(s: RandomChoices) -> None:
    values = s.one_of([v for v in (s.graph.input, s.graph.output, s.graph.value_info) if len(v)])
    del values[int(s.rng.integers(len(values)))]


def value_twice(s: RandomChoices) -> None:
    values = s.one_of([v for v in (s.graph.input, s.graph.output, s.graph.value_info) if len(v)])
    values.add().CopyFrom(s.one_of(values))


def value_added(s: RandomChoices) -> None:
    values = s.one_of((s.graph.input, s.graph.output, s.graph.value_info))
    values.append(helper.make_tensor_value_info(s.name, s.one_of((1, 7, 10)), [s.odd(), 3]))


def slot_renamed(s: RandomChoices) -> None:
    slots = s.slots
    slots[int(s.rng.integers(len(slots)))] = s.name


def slot_lost(s: RandomChoices) -> None:
    slots = s.slots
    del slots[int(s.rng.integers(len(slots)))]


def slot_added(s: RandomChoices) -> None:
    s.one_of((s.node.input, s.node.output)).append(s.name)


def slots_swapped(s: RandomChoices) -> None:
    slots = s.slots
    slots[0], slots[-1] = slots[-1], slots[0]


def tensor_renamed(s: RandomChoices) -> None:
    s.one_of(s.graph.initializer).name = s.name


def tensor_twice(s: RandomChoices) -> None:
    s.graph.initializer.add().CopyFrom(s.one_of(s.graph.initializer))


def tensor_lost(s: RandomChoices) -> None:
    s.graph.initializer.remove(s.one_of(s.graph.initializer))


def node_lost(s: RandomChoices) -> None:
    s.graph.node.remove(s.one_of(s.graph.node))


def node_twice(s: RandomChoices) -> None:
    s.graph.node.add().CopyFrom(s.one_of(s.graph.node))


def nodes_reordered(s: RandomChoices) -> None:
    order = s.rng.permutation(len(s.graph.node)) if s.rng.random() < 0.5 else range(len(s.graph.node))[::-1]
    nodes = [s.graph.node[int(k)] for k in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del s.graph.node[:]
    s.graph.node.extend(copies)


def operator_changed(s: RandomChoices) -> None:
    s.node.op_type = s.one_of(OPERATORS)


def domain_changed(s: RandomChoices) -> None:
    s.node.domain = s.one_of(("ai.onnx", "com.microsoft", "ai.onnx.ml", "nowhere", "local", ""))


def opset_changed(s: RandomChoices) -> None:
    imports = s.proto.opset_import
    s.one_of(imports).version = s.one_of((-1, 0, 1, 5, 7, 9, 11, 13, 18, 22, 99, 1 << 62))
    if s.rng.random() < 0.2:
        imports.add().CopyFrom(s.one_of(imports))


def version_changed(s: RandomChoices) -> None:
    s.proto.ir_version = s.one_of((-1, 0, 1, 2, 3, 4, 99, 1 << 62))


def function_changed(s: RandomChoices) -> None:
    f = s.one_of(s.proto.functions)
    what = s.one_of(("loop", "twice", "name", "inputs", "lost", "opset"))
    if what == "loop":
        f.node.append(helper.make_node(f.name, list(f.input), ["again"], domain=f.domain))
    elif what == "twice":
        s.proto.functions.add().CopyFrom(f)
    elif what == "name":
        f.name = s.one_of(("", "Conv", "Block", "Twice"))
    elif what == "inputs":
        f.input.append(s.one_of(("", "v", "extra")))
    elif what == "lost":
        s.proto.functions.remove(f)
    else:
        del f.opset_import[:]


def annotated(s: RandomChoices) -> None:
    note = s.graph.quantization_annotation.add(tensor_name=s.name)
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=s.name)
    s.proto.metadata_props.add(key="k", value="v")
    s.proto.metadata_props.add(key="k", value="v" * 1000)
    s.proto.training_info.add().algorithm.CopyFrom(s.proto.graph)


MUTATORS: tuple[Callable[[RandomChoices], None], ...] = (
    *(attribute_removed, attribute_value, attribute_value, attribute_type, attribute_name, attribute_added),
    *(tensor_dims, tensor_type, tensor_data, tensor_numbers, tensor_values, tensor_external, tensor_sparse),
    *(declared_size, declared_size, declared_type, value_name, value_lost, value_twice, value_added),
    *(slot_renamed, slot_renamed, slot_lost, slot_added, slots_swapped, tensor_renamed, tensor_twice, tensor_lost),
    *(node_lost, node_twice, nodes_reordered, operator_changed, domain_changed, opset_changed, version_changed),
    *(function_changed, annotated),
)

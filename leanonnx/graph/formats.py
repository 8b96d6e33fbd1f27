"""Number formats of models, and conversion of a model to float32.

Half-precision sums depend on their order far above any useful bound, and onnxruntime's CPU provider runs neither
bfloat16 nor convolutions of doubles.  Such models are analysed and proven as float32 stand-ins: the same graph and
the same weights, with each constant and each declared type widened (or, for double, narrowed).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from leanonnx.graph.nodes import is_quantised, subgraphs
from leanonnx.numeric.arrays import Array

Source = Path | onnx.ModelProto
"""A model: its file, or in memory."""
ElementTypes = frozenset[int]
PRECISE_FLOATS = (np.float32, np.float64)
"""Number formats whose last places are far below any bound of the proof."""
PRECISE_TYPES: ElementTypes = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
"""The element types of these."""
HALF_TYPES: ElementTypes = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
REPLACED_TYPES: ElementTypes = HALF_TYPES | {TensorProto.DOUBLE}
FLOAT_TYPES: ElementTypes = REPLACED_TYPES | {TensorProto.FLOAT}
TYPE_ATTRIBUTES = {"to", "dtype", "output_datatype", "output_dtype"}
"""Integer attributes that name an element type."""


def is_float(value: Array) -> bool:
    """True if an array holds floating-point numbers of any width."""
    return bool(value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def is_integer(value: Array) -> bool:
    """True if an array holds integers of any width (int4 is no type of numpy's own)."""
    return bool(value.dtype.kind in "iu" or value.dtype.name in ("int4", "uint4", "int2", "uint2"))


def float_types(proto: onnx.ModelProto) -> ElementTypes:
    """Element types of all floating-point constants, casts, inputs and outputs."""
    kinds: set[int] = set()
    for graph in graphs(proto.graph):
        kinds |= {t.data_type for t in graph.initializer}
        kinds |= {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
        for node in graph.node:
            kinds |= {a.t.data_type for a in node.attribute if a.type == AttributeProto.TENSOR}
            kinds |= {a.i for a in node.attribute if a.name in TYPE_ATTRIBUTES}
    return FLOAT_TYPES & kinds


def number_format(proto: onnx.ModelProto) -> str:
    """The coarsest number format that a model computes in."""
    if any(is_quantised(node) for node in proto.graph.node):
        return "quantised"
    kinds = float_types(proto)
    return "float64" if kinds == {TensorProto.DOUBLE} else "float32"


def convert_to_float32(proto: onnx.ModelProto, replaced: ElementTypes) -> onnx.ModelProto:
    """The model with some formats replaced by float32; the model itself if there are none."""
    if not replaced:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for graph in graphs(result.graph):
        for tensor in graph.initializer:
            _widen(tensor, replaced)
        for value in [*graph.input, *graph.output, *graph.value_info]:
            _retype(value.type, replaced)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    _widen(attribute.t, replaced)
                elif (
                    attribute.type == AttributeProto.INT
                    and attribute.name in TYPE_ATTRIBUTES
                    and attribute.i in replaced
                ):
                    attribute.i = TensorProto.FLOAT
    return result


def load_proto(source: Source) -> onnx.ModelProto:
    """The model in memory."""
    return onnx.load(source) if isinstance(source, Path) else source


def stand_in(source: Source, replaced: ElementTypes) -> Source:
    """``in_float32`` of a model, which is read from its file only if formats are replaced."""
    return convert_to_float32(load_proto(source), replaced) if replaced else source


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def value_names(graph: onnx.GraphProto) -> set[str]:
    """All value names of a graph and its subgraphs."""
    names: set[str] = set()
    for part in graphs(graph):
        names |= {t.name for t in part.initializer} | {v.name for v in [*part.input, *part.output]}
        names.update(name for node in part.node for name in [*node.input, *node.output])
    return names


def convert_feed(feed: dict[str, Array], replaced: ElementTypes) -> dict[str, Array]:
    """Inputs for a stand-in."""
    names = {onnx.helper.tensor_dtype_to_np_dtype(kind).name for kind in replaced}
    return {key: value.astype(np.float32) if value.dtype.name in names else value for key, value in feed.items()}


def _widen(tensor: TensorProto, replaced: ElementTypes) -> None:
    if tensor.data_type in replaced:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        name, doc = tensor.name, tensor.doc_string
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        tensor.doc_string = doc


def _retype(kind: onnx.TypeProto, replaced: ElementTypes) -> None:
    field = kind.WhichOneof("value")
    if field in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(kind, field)
        if tensor.elem_type in replaced:
            tensor.elem_type = TensorProto.FLOAT
    elif field in ("sequence_type", "optional_type"):
        _retype(getattr(kind, field).elem_type, replaced)

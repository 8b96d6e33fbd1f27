"""Size of the file that surgery writes, predicted for any keep set from its constants and the rest of the model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import holder_array
from leanonnx.graph.storage import (
    ALIGNMENT,
    BITS_PER_BYTE,
    MIN_EXTERNAL_BYTES,
    PROTOBUF_LIMIT,
    SUB_BYTE_BITS,
    data_size,
    element_bits,
)

FLOAT_BITS = 32
"""Bits of a weight whose file does not store it."""
TAG_BYTES = 4
"""Bytes of the tag and the length of a protobuf field, about."""
EXTERNAL_ENTRY_BYTES = 64
"""Bytes of the entry that says where a tensor is kept in the external data file, about."""


@dataclass(frozen=True)
class FileSize:
    """Predicts the bytes of a written model with its external data.

    ``original``: bytes of the file as read.  ``frame``: bytes that are written whatever is removed, everything but the
    data of constants that can be sliced.  ``external``: large constants are written to a file of their own.
    """

    original: int
    frame: int
    external: bool

    def data_bytes(self, bits: int, count: int) -> int:
        """Bytes of the data of a constant: ``count`` elements of ``bits`` each."""
        size = -(-count * bits // BITS_PER_BYTE)
        return -(-size // ALIGNMENT) * ALIGNMENT if self.external and size >= MIN_EXTERNAL_BYTES else size


def file_size(model: Model, sliced: Collection[str]) -> FileSize:
    """The size model of a network; ``sliced`` names the constants that surgery may slice."""
    proto, nodes = model.proto, model.proto.graph.node
    size = FileSize(model.size, 0, bool(model.external_files) or data_size(proto) >= PROTOBUF_LIMIT)
    frame = _field_bytes(proto, leave="graph") + _field_bytes(proto.graph, leave="initializer")
    frame -= sum(_node_data_bytes(node) for node in nodes if node.op_type == "Constant" and node.output[0] in sliced)
    for tensor in proto.graph.initializer:
        frame += _head_bytes(tensor) + EXTERNAL_ENTRY_BYTES * size.external
        if tensor.name not in sliced:
            data = tensor.ByteSize() - _head_bytes(tensor)
            frame += size.data_bytes(BITS_PER_BYTE, max(data, 0))
    return FileSize(size.original, frame, size.external)


def constant_bits(model: Model, name: str) -> int:
    """Bits of one element of a constant, without reading an initializer's data."""
    holder = model.holders[model.origins[name]]
    if isinstance(holder, onnx.TensorProto):
        return element_bits(holder.data_type)
    return array_bits(holder_array(holder).dtype)


def weight_bits(dag: ChannelDag, node: int, slot: int) -> int:
    """Bits of one element of the weight that a node reads in a slot, as the file stores it."""
    name = weight_holder(dag, node, slot)
    return constant_bits(dag.model, name) if name in dag.model.origins else FLOAT_BITS


def weight_holder(dag: ChannelDag, node: int, slot: int) -> str:
    """Name of the stored constant behind the weight that a node reads in a slot; of another tensor if none is found."""
    model, nodes = dag.model, dag.model.proto.graph.node
    name = nodes[node].input[slot]
    while name not in model.origins and name in model.producers and nodes[model.producers[name]].input:
        name = nodes[model.producers[name]].input[0]
    return model.origins.get(name, name)


def array_bits(dtype: Any) -> int:
    """Bits of one element of an array, as it is stored in a file."""
    return SUB_BYTE_BITS.get(dtype.name, BITS_PER_BYTE * int(dtype.itemsize))


def _field_bytes(message: Any, leave: str) -> int:
    """Bytes of the fields of a message, but for one."""
    total = 0
    for descriptor, value in message.ListFields():
        if descriptor.name != leave:
            values = value if hasattr(value, "extend") else [value]
            total += sum(TAG_BYTES + _value_bytes(each) for each in values)
    return total


def _value_bytes(value: Any) -> int:
    """Bytes of a message or a text; none for numbers, which fit beside the tag."""
    if isinstance(value, str | bytes):
        return len(value)
    return int(value.ByteSize()) if hasattr(value, "ByteSize") else 0


def _head_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor without its data."""
    return len(tensor.name) + len(tensor.doc_string) + TAG_BYTES * (len(tensor.dims) + 3)


def _node_data_bytes(node: onnx.NodeProto) -> int:
    """Bytes of the value in a Constant node."""
    return int(sum(attribute.ByteSize() for attribute in node.attribute))

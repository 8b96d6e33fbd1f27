"""Write ONNX files without a second copy of the weights in memory."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import Message
from onnx import numpy_helper

MIN_EXTERNAL_BYTES = 1024
"""Bytes from which a constant is worth a place in the external data file."""
ALIGNMENT = 4096
"""Offsets are multiples of the page size, so that onnxruntime can map the data instead of reading them."""
BITS_PER_BYTE = 8
SUB_BYTE_BITS = {
    "int4": 4,
    "uint4": 4,
    "float4_e2m1fn": 4,
    "int2": 2,
    "uint2": 2,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
}
"""Bits of the element types that numpy stores in a byte each."""
MIN_PIECEWISE_BYTES = 1 << 24
"""Bytes of constants from which a model is written piece by piece."""
PROTOBUF_LIMIT = (1 << 31) - (1 << 26)
"""Bytes of constants that safely fit into one protobuf message, which can hold 2 GB."""


def write_model(proto: onnx.ModelProto, path: Path, external: bool) -> None:
    """Write a model; with ``external``, its large constants are stored in one file beside it, named after it.

    The output is deterministic: the same model gives the same bytes.
    """
    if not external and data_size(proto) < PROTOBUF_LIMIT:
        with path.open("wb") as file:
            if data_size(proto) < MIN_PIECEWISE_BYTES:
                file.write(proto.SerializeToString(deterministic=True))
            else:
                _write_piecewise(proto, file)
        return
    location = f"{path.name}.data"
    shell = onnx.ModelProto()
    copy_fields(proto, shell, leave={"graph"})
    copy_fields(proto.graph, shell.graph, leave={"initializer"})
    with (path.parent / location).open("wb") as file:
        for tensor in proto.graph.initializer:
            shell.graph.initializer.append(_externalize(tensor, file, location))
    path.write_bytes(shell.SerializeToString(deterministic=True))


def _write_piecewise(proto: onnx.ModelProto, file: BinaryIO) -> None:
    """Write a model as protobuf does, field by field in the order of their numbers, but one initializer at a time."""
    before, graph, after = _split_at(proto, "graph")
    head, initializers, tail = _split_at(proto.graph, "initializer")
    size = len(head) + len(tail)
    for tensor in proto.graph.initializer:
        length = len(tensor.SerializeToString(deterministic=True))
        size += len(initializers) + len(_varint(length)) + length
    file.write(before + graph + _varint(size) + head)
    for tensor in proto.graph.initializer:
        data = tensor.SerializeToString(deterministic=True)
        file.write(initializers + _varint(len(data)))
        file.write(data)
    file.write(tail + after)


def _split_at(message: Message, field: str) -> tuple[bytes, bytes, bytes]:
    """The fields of a message before one field, the tag of that field, and the fields after it."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    numbers = {each.name: each.number for each in message.DESCRIPTOR.fields}
    parts = []
    for leave in (
        {name for name, each in numbers.items() if each >= number},
        {name for name, each in numbers.items() if each <= number},
    ):
        part = type(message)()
        copy_fields(message, part, leave)
        parts.append(part.SerializeToString(deterministic=True))
    return parts[0], _varint(number << 3 | 2), parts[1]


def data_size(proto: onnx.ModelProto) -> int:
    """Bytes of all initializers (protobuf itself cannot measure messages over 2 GB)."""
    return sum(_bytes(tensor) for tensor in proto.graph.initializer)


def _bytes(tensor: onnx.TensorProto) -> int:
    return 0 if tensor.data_type == onnx.TensorProto.STRING else byte_size(tensor.data_type, math.prod(tensor.dims))


def byte_size(kind: int, count: int) -> int:
    """Bytes of ``count`` elements of a type; those of less than a byte are packed."""
    return -(-count * element_bits(kind) // BITS_PER_BYTE)


def element_bits(kind: int) -> int:
    """Bits of one element of a type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return SUB_BYTE_BITS.get(dtype.name, BITS_PER_BYTE * dtype.itemsize)


def _externalize(tensor: onnx.TensorProto, file: BinaryIO, location: str) -> onnx.TensorProto:
    """A tensor whose data are written to a file; the tensor itself if it is small."""
    if _bytes(tensor) < MIN_EXTERNAL_BYTES:
        return tensor
    data = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    result = onnx.TensorProto(
        dims=tensor.dims,
        data_type=tensor.data_type,
        name=tensor.name,
        doc_string=tensor.doc_string,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", str(file.tell())), ("length", str(len(data)))):
        result.external_data.add(key=key, value=value)
    file.write(data)
    return result


def digest(file: Path) -> bytes:
    """SHA-256 of the content of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def copy_fields(source: object, target: object, leave: set[str]) -> None:
    """Copy all fields of a protobuf message but those to leave out."""
    for descriptor, value in source.ListFields():  # type: ignore[attr-defined]
        if descriptor.name in leave:
            continue
        if isinstance(value, bytes) and descriptor.type == descriptor.TYPE_STRING:  # text that is not UTF-8
            head = _varint(descriptor.number << 3 | 2) + _varint(len(value))
            target.MergeFromString(head + value)  # type: ignore[attr-defined]
        elif hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _varint(number: int) -> bytes:
    """Protobuf's encoding of a non-negative integer."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])

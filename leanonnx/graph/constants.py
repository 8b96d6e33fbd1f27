"""Checks of constants before any memory is taken for them: declared sizes, and files of external data."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from leanonnx.errors import ModelError
from leanonnx.graph.storage import BITS_PER_BYTE, byte_size, element_bits

PACKED_ELEMENTS = 8
"""Elements of less than a byte that one value of a typed field may hold."""


def check_size(tensor: onnx.TensorProto, path: Path) -> None:
    """Refuse a constant that declares another size than its data have.

    Raises:
        ModelError: the sizes disagree, or the data file of an external constant is missing or out of bounds.
    """
    if min(tensor.dims, default=0) < 0 or tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
        raise ModelError(f"{path}: constant '{tensor.name}' has a negative size or no known type; export it again")
    count = math.prod(tensor.dims)
    if uses_external_data(tensor):
        enough = _external_bytes(tensor, path) >= byte_size(tensor.data_type, count)
    elif tensor.HasField("raw_data"):
        enough = len(tensor.raw_data) == byte_size(tensor.data_type, count)
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        stored = max(len(tensor.string_data), *(len(field) for field in fields))
        pair = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
        small = element_bits(tensor.data_type) < BITS_PER_BYTE
        enough = stored * PACKED_ELEMENTS >= count if small else stored == count * (1 + pair)
    if not enough:
        short, other = "its external data are shorter; copy the data file", "its data have others"
        where = short if uses_external_data(tensor) else other
        raise ModelError(
            f"{path}: constant '{tensor.name}' declares the sizes {list(tensor.dims)}, but {where}; "
            "export or copy the model again"
        )


def _external_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Bytes that the file of an external constant holds for it."""
    try:
        info = ExternalDataInfo(tensor)
        offset, length = int(info.offset or 0), int(info.length or 0)
    except ValueError as error:
        raise ModelError(f"{path}: constant '{tensor.name}' has a broken place of its data; export it again") from error
    if min(offset, length) < 0:
        raise ModelError(f"{path}: constant '{tensor.name}' has a broken place of its data; export it again")
    size = external_path(tensor, path).stat().st_size - offset
    return min(size, length) if length else size


def external_path(tensor: onnx.TensorProto, path: Path) -> Path:
    """The data file of an external constant, which must lie in the model's folder.

    Raises:
        ModelError: it lies elsewhere, is missing, or has no usable name.
    """
    folder = path.parent.resolve()
    location = ExternalDataInfo(tensor).location
    try:
        file = (folder / location).resolve()
        inside, present = file.is_relative_to(folder), file.is_file()
    except (TypeError, ValueError, OSError) as error:  # not UTF-8, a zero byte, too long
        raise ModelError(
            f"{path}: the external data of constant '{tensor.name}' have no usable file name; export the model again"
        ) from error
    if not inside:
        raise ModelError(
            f"{path}: the data of constant '{tensor.name}' lies outside the model's folder ('{location}'); "
            "put the data file beside the model"
        )
    if not present:
        raise ModelError(
            f"{path}: the external data file '{location}' of constant '{tensor.name}' is missing; copy it to {folder}"
        )
    return file

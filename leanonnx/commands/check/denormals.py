"""Count the denormal weights of a model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.model import Model, tensors

DENORMAL_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
"""Types whose denormals stay denormal in computations; those of float16 do not, in float32."""
FRACTION_BITS = {2: 7, 4: 23, 8: 52}
"""Fraction bits of bfloat16, float32 and double, by size in bytes."""


def denormal_weights(model: Model) -> dict[str, int]:
    """Number of denormal elements of each constant that has any.

    They are detected by their bits: to a processor that a session has set to flush denormals, they equal zero.
    """
    counts: dict[str, int] = {}
    for tensor in tensors(model.proto.graph):
        if tensor.data_type in DENORMAL_TYPES:
            array = np.ascontiguousarray(numpy_helper.to_array(tensor))
            fraction = FRACTION_BITS[array.itemsize]
            bits = array.reshape(-1).view(f"u{array.itemsize}") << 1  # without the sign
            count = int(np.count_nonzero((bits != 0) & (bits >> (fraction + 1) == 0)))
            if count:
                counts[tensor.name] = counts.get(tensor.name, 0) + count
    return counts

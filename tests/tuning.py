"""Networks, data and settings for tests of fine-tuning; needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.commands.finetune.options import TrainingSettings
from tests.helpers import build

CLASSIFIER = """
<ir_version: 8, opset_import: ["" : 17]>
classifier (float[1, 3, 8, 8] x) => (float[1, 5] y)
<float[WIDTH, 3, 3, 3] w1, float[WIDTH] b1, float[5, WIDTH] w2, float[5] b2, int64[2] shape>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    p1 = GlobalAveragePool (r1)
    f1 = Reshape (p1, shape)
    g1 = Gemm <transB = 1> (f1, w2, b2)
    y = OUT (g1)
}
"""

DENOISER = """
<ir_version: 8, opset_import: ["" : 17]>
denoiser (float[N, 1, 16, 16] x) => (float[N, 1, 16, 16] y)
<float[4, 1, 3, 3] w1, float[4] b1, float[1, 4, 3, 3] w2, float[1] b2>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    y = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
}
"""


def classifier(width: int, seed: int, out: str = "Identity") -> onnx.ModelProto:
    """Its batch size is written into the graph: a Reshape to [1, width]."""
    proto = build(CLASSIFIER.replace("WIDTH", str(width)).replace("OUT", out), seed)
    for tensor in proto.graph.initializer:
        if tensor.name == "shape":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, width]), "shape"))
    return proto


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model in half precision."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del proto.graph.value_info[:]
    return proto


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def samples(path: Path, count: int = 40, shape: tuple[int, ...] = (3, 8, 8), name: str = "x", **more: Any) -> Path:
    data = np.random.default_rng(7).standard_normal((count, *shape)).astype(np.float32)
    np.savez(path, **{name: data}, **more)
    return path


def settings(epochs: int = 8, **more: Any) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, rate=0.01, batch=8, **more)

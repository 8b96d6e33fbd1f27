"""Networks half of whose channels can go, with inputs and scores: what the tests of tolerances begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from tests.calibrated import net
from tests.helpers import saved

COUNT = 120
"""Samples of a network; one in three judges."""
SCORES = """
import numpy as np
import onnxruntime as ort

def outputs(path, data):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": row[None]})[0] for row in data["x"]])

def by_sample(path, data):
    return (outputs(path, data).argmax(1) == data["labels"]).astype(float)

def one_number(path, data):
    return float(by_sample(path, data).mean() * data["weight"].mean())

def broken(path, data):
    return data["nothing"]

def wrong(path, data):
    return np.zeros(3)
"""


def doubled(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The network with each second output of some layers a scaled copy of the one before: half of them can go."""
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            value = numpy_helper.to_array(tensor).copy()
            value[1::2] = 0.7 * value[::2]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return proto


def classifier() -> onnx.ModelProto:
    return doubled(
        net(
            "(float[N,3,8,8] x) => (float[N,5] y)",
            "float[16,3,3,3] w1, float[16] b1, float[12,16,3,3] w2, float[12] b2, float[5,12] w3, float[5] b3",
            "h = Conv (x, w1, b1) r = Relu (h) g = Conv (r, w2, b2) s = Relu (g) p = GlobalAveragePool (s) "
            "f = Flatten (p) y = Gemm <transB = 1> (f, w3, b3)",
        ),
        *("w1", "b1", "w2", "b2"),
    )


def imager() -> onnx.ModelProto:
    return doubled(
        net(
            "(float[N,1,12,12] x) => (float[N,1,12,12] y)",
            "float[16,1,3,3] w1, float[16] b1, float[1,16,3,3] w2",
            "h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (h) y = Conv <pads = [1, 1, 1, 1]> (r, w2)",
        ),
        *("w1", "b1"),
    )


def inputs(shape: tuple[int, ...], count: int = COUNT) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, (count, *(1 for _ in shape)))
    return (scale * rng.standard_normal((count, *shape)) + rng.standard_normal((count, shape[0], 1, 1))).astype("f4")


def fill(tmp_path: Path) -> Path:
    """Write both networks, their inputs, and scores into a folder."""
    saved(classifier(), tmp_path / "m.onnx")
    saved(imager(), tmp_path / "i.onnx")
    x = inputs((3, 8, 8))
    labels = np.concatenate(
        [np.argmax(first_output(tmp_path / "m.onnx", row[None]), 1) for row in x],
    )
    np.savez(tmp_path / "m.npz", x=x, labels=labels, weight=np.ones(COUNT, np.float32))
    np.savez(tmp_path / "i.npz", x=inputs((1, 12, 12)))
    (tmp_path / "scores.py").write_text(SCORES)
    return tmp_path


def first_output(path: Path, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (output,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": value})
    return np.asarray(output)


def asked(folder: Path, name: str, *options: object) -> tuple[object, ...]:
    """The words of a compression of one of the networks."""
    return ("compress", folder / f"{name}.onnx", folder / "o.onnx", "--calib", folder / f"{name}.npz", *options)

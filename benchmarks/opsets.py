"""One convolutional network in every operator set from 7 on: compressed, proven, and compared with a mask of its own.

    python -m benchmarks.opsets

Prints JSON: the operator sets that were proven, those that onnxruntime does not run, and those that failed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import leanonnx
from leanonnx.errors import LeanOnnxError
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.sessions import run as run_model

OLDEST = 7
"""The first operator set with today's broadcasting."""
UPSAMPLE_SCALES, RESIZE, RESIZE_ROI = 9, 10, 11
"""Operator sets in which Upsample takes its scales as an input, Resize takes its place, and gets a region."""
IR_VERSIONS = {21: 10, 0: 8}
"""Version of the file format from an operator set on; none needs a newer one for this network."""
WIDTH, MIXED, CLASSES, SIDE = 16, 24, 10, 8
KEEP = 0.5


def network(opset: int) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, MaxPool, Add, Resize, Concat, pooling, Reshape and Gemm in an operator set."""
    rng = np.random.default_rng(opset)
    weights = {
        "w1": (WIDTH, 3, 3, 3),
        "w2": (WIDTH, WIDTH, 3, 3),
        "w3": (MIXED, 2 * WIDTH, 1, 1),
        "b3": (MIXED,),
        **dict.fromkeys(("gain", "bias", "mean"), (WIDTH,)),
        "w4": (CLASSES, MIXED),
        "b4": (CLASSES,),
    }
    constants: dict[str, Array] = {
        name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in weights.items()
    }
    constants["variance"] = rng.uniform(0.5, 2.0, WIDTH).astype(np.float32)
    constants["shape"] = np.array([1, -1], np.int64)
    node, kernel, pads = helper.make_node, [3, 3], [1, 1, 1, 1]
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], kernel_shape=kernel, pads=pads),
        node("BatchNormalization", ["c1", "gain", "bias", "mean", "variance"], ["n1"]),
        node("Relu", ["n1"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2"], ["c2"], kernel_shape=kernel, pads=pads),
        node("Add", ["c2", "p1"], ["a2"]),
        *_enlarged("a2", "u2", opset, constants),
        node("Concat", ["u2", "r1"], ["j2"], axis=1),
        node("Conv", ["j2", "w3", "b3"], ["c3"], kernel_shape=[1, 1]),
        node("LeakyRelu", ["c3"], ["r3"], alpha=0.1),
        node("GlobalAveragePool", ["r3"], ["g3"]),
        node("Reshape", ["g3", "shape"], ["f3"]),
        node("Gemm", ["f3", "w4", "b4"], ["y"], transB=1),
    ]
    for each in nodes:
        each.name = each.output[0].upper()
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    version = next(number for least, number in IR_VERSIONS.items() if opset >= least)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)


def _enlarged(source: str, target: str, opset: int, constants: dict[str, Array]) -> list[onnx.NodeProto]:
    """The node that doubles height and width."""
    scales = [1.0, 1.0, 2.0, 2.0]
    if opset < UPSAMPLE_SCALES:
        return [helper.make_node("Upsample", [source], [target], mode="nearest", scales=scales)]
    constants["scales"] = np.array(scales, np.float32)
    if opset < RESIZE:
        return [helper.make_node("Upsample", [source, "scales"], [target], mode="nearest")]
    if opset < RESIZE_ROI:
        return [helper.make_node("Resize", [source, "scales"], [target], mode="nearest")]
    constants["roi"] = np.zeros(0, np.float32)
    return [helper.make_node("Resize", [source, "roi", "scales"], [target], mode="nearest")]


def outcome(opset: int, folder: Path) -> str:
    """Empty if the network was compressed and proven; else the reason."""
    source, target = folder / f"{opset}.onnx", folder / f"{opset}-half.onnx"
    onnx.save(network(opset), source)
    try:
        result = leanonnx.compress(source, target, keep=KEEP, align=1, measure=False)
    except LeanOnnxError as error:
        return str(error)
    if not result.proof.passed or target.stat().st_size >= source.stat().st_size:
        return "nothing was removed, or it is not proven"
    kept = {each.version for each in onnx.load(target).opset_import if not each.domain}
    return "" if kept == {opset} else f"the operator set became {kept}"


def runs(opset: int) -> bool:
    """True if this onnxruntime runs the operator set."""
    feed = {"x": np.zeros((1, 3, SIDE, SIDE), np.float32)}
    try:
        run_model(network(opset), [feed])
    except RunFailed:
        return False
    return True


def main() -> int:
    """Print the outcomes; exit code 1 if one failed."""
    numbers = range(OLDEST, onnx.defs.onnx_opset_version() + 1)
    able = [number for number in numbers if runs(number)]
    with tempfile.TemporaryDirectory() as name:
        outcomes = {number: outcome(number, Path(name)) for number in able}
    failed = {str(number): reason for number, reason in outcomes.items() if reason}
    result = {
        "proven": [number for number, reason in outcomes.items() if not reason],
        "not_run": [number for number in numbers if number not in able],
        "failed": failed,
    }
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

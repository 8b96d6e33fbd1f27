"""Networks whose weights recovery changes, and the runs that make and replay a plan of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.calibrated import net
from tests.helpers import called

INTERFACE = "(float[N,3,8,8] x) => (float[N,6] y)"
BODY = "h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m) k = Flatten (s) y = Gemm (k, e, f)"
MODEL = net(
    INTERFACE, "float[16,3,3,3] a, float[16] b, float[12,16,3,3] c, float[12] d, float[192,6] e, float[6] f", BODY
)
PLAN = ("--plan-out", "p.json")
WEIGHTS = (*PLAN, "--plan-weights", "w.npz")


def inputs(count: int = 160, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth images, of which a network can leave something out."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 3, 3)).repeat(3, 2).repeat(3, 3)[:, :, :8, :8]
    return (coarse + 0.3 * rng.standard_normal((count, 3, 8, 8))).astype(np.float32)


def made(folder: Path, *options: object, budget: tuple[object, ...] = ("--keep", 0.5)) -> dict[str, Any]:
    """The report of a compression whose options are relative to ``folder``, the current directory."""
    done = called("compress", "m.onnx", "out.onnx", *budget, "--align", 1, "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def replayed(folder: Path, *options: object) -> list[str]:
    """The warnings of a replay, which writes again.onnx."""
    done = called("compress", "m.onnx", "again.onnx", "--plan", "p.json", "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)["warnings"]
    return found


def same(folder: Path) -> bool:
    """True if the replay gave the bytes of the first run."""
    return (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def recorded(folder: Path) -> Any:
    return json.loads((folder / "p.json").read_text())["recovery"]


def constant_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its initializers turned into Constant nodes."""
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    nodes = [onnx.helper.make_node("Constant", [], [t.name], t.name.upper(), value=t) for t in proto.graph.initializer]
    del result.graph.initializer[:], result.graph.node[:]
    result.graph.node.extend([*nodes, *proto.graph.node])
    return result


def renamed(proto: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """The model with other names for its constants."""
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in result.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in result.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return result


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in half precision."""
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return result


def with_variances(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with variances above 0."""
    for tensor in proto.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)) + np.float32(0.5), "v"))
    return proto


NETS = {
    "plain": MODEL,
    "constant nodes": constant_nodes(MODEL),
    "names": renamed(MODEL, {"a": "file", "b": "/enc/b.npy", "c": "w::c", "d": "/enc/b"}),
    "halves": halved(MODEL),
    "biases added": net(
        INTERFACE,
        "float[16,3,3,3] a, float[12,16,3,3] c, float[192,6] e",
        "h = Conv (x, a) r = Relu (h) m = Conv (r, c) s = Relu (m) k = Flatten (s) y = Gemm (k, e)",
    ),
    "one bias of two": net(
        INTERFACE,
        "float[16,3,3,3] a, float[16,16,3,3] c, float[16] d, float[256,6] e",
        "h = Conv (x, a, d) r = Relu (h) m = Conv (r, c, d) s = Relu (m) k = Flatten (s) y = Gemm (k, e)",
    ),
    "weights behind a Transpose": net(
        INTERFACE,
        "float[3,16,3,3] a, float[3,3,16,12] c, float[6,192] e",
        "p = Transpose <perm = [1, 0, 2, 3]> (a) q = Transpose <perm = [3, 2, 0, 1]> (c) u = Transpose (e) "
        "h = Conv (x, p) r = Relu (h) m = Conv (r, q) s = Relu (m) k = Flatten (s) y = MatMul (k, u)",
    ),
    "weights behind a Cast": net(
        INTERFACE,
        "float16[16,3,3,3] a, float16[12,16,3,3] c, float16[192,6] e",
        "p = Cast <to = 1> (a) q = Cast <to = 1> (c) u = Cast <to = 1> (e) "
        "h = Conv (x, p) r = Relu (h) m = Conv (r, q) s = Relu (m) k = Flatten (s) y = Gemm (k, u)",
    ),
    "norms": with_variances(
        net(
            INTERFACE,
            "float[16,3,3,3] a, float[16] g, float[16] b, float[16] u, float[16] v, float[12,16,3,3] c, float[192,6] e",
            "h = Conv (x, a) n = BatchNormalization (h, g, b, u, v) r = Relu (n) m = Conv (r, c) s = Relu (m) "
            "k = Flatten (s) y = Gemm (k, e)",
        )
    ),
}

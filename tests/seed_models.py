"""Small valid models that ``tests.corruption`` corrupts: the files of one folder each, the model under ``MODEL``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import from_seed
from tests.helpers import CNN, build

Files = Mapping[str, bytes]
MODEL = "model.onnx"
DATA = "weights.bin"
RANDOM = 24
"""Number of models from the random generator."""
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

GROUPED = f"""{HEAD}
grouped (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y)
<float[8, 4, 3, 3] w1, float[8, 2, 3, 3] w2, float[8, 1, 3, 3] w3, float[8] s, float[8] b,
 float[8] m, float[6, 8, 1, 1] w4>
{{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    g = Conv <pads = [1, 1, 1, 1], group = 4> (a, w2)
    d = Conv <pads = [1, 1, 1, 1], group = 8> (g, w3)
    n = InstanceNormalization (d, s, b)
    p = PRelu (n, m8)
    r = Add (p, a)
    y = Conv (r, w4)
    m8 = Unsqueeze (m, ax)
}}
"""

RESHAPED = f"""{HEAD}
reshaped (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[8, 3, 3, 3] w1, float[5, 512] w2, float[5] b2, int64[1] last = {{-1}}, int64 zero = {{0}}, int64[1] ax = {{0}},
 int64[5] folded = {{0, 2, 4, 8, 8}}>
{{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    f = Reshape (a, folded)
    t = Transpose <perm = [0, 2, 1, 3, 4]> (f)
    s = Shape (x)
    n = Gather <axis = 0> (s, zero)
    n1 = Unsqueeze (n, ax)
    target = Concat <axis = 0> (n1, last)
    flat = Reshape (t, target)
    y = Gemm <transB = 1, alpha = 0.5> (flat, w2, b2)
}}
"""

QUANTISED = f"""{HEAD}
quantised (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[1, 3, 1, 1] unused, float xs = {{0.05}}, uint8 xz = {{128}},
 float[6] ws1 = {{0.01, 0.02, 0.01, 0.03, 0.01, 0.02}}, float ws2 = {{0.02}}>
{{
    xq = QuantizeLinear (x, xs, xz)
    xd = DequantizeLinear (xq, xs, xz)
    w1 = DequantizeLinear <axis = 0> (q1, ws1)
    a = Conv <pads = [1, 1, 1, 1]> (xd, w1)
    r = Relu (a)
    rq = QuantizeLinear (r, xs, xz)
    rd = DequantizeLinear (rq, xs, xz)
    w2 = DequantizeLinear (q2, ws2)
    y = Conv (rd, w2)
}}
"""

BRANCHED = f"""{HEAD}
branched (float[1, 3, 8, 8] x, bool flag) => (float[1, 4, 8, 8] y)
<float[8, 3, 3, 3] w1, float[8, 8, 1, 1] w2, float[4, 8, 1, 1] w3, int64 trips = {{2}}, bool yes = {{1}}>
{{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = If (flag) <
        then_branch = yes_graph () => (float[1, 8, 8, 8] t) {{ t = Conv (a, w2) }},
        else_branch = no_graph () => (float[1, 8, 8, 8] e) {{ e = Relu (a) }}
    >
    c = Loop (trips, yes, b) <
        body = loop_graph (int64 i, bool go, float[1, 8, 8, 8] v) => (bool went, float[1, 8, 8, 8] u)
        {{ went = Identity (go) u = Tanh (v) }}
    >
    y = Conv (c, w3)
}}
"""

SPLIT = f"""{HEAD}
split (float[1, 3, H, W] x) => (float[1, 6, h, w] y, float[1, 4, h2, w2] z)
<float[8, 3, 3, 3] w1, float[4, 4, 3, 3] w2, float[8, 8, 2, 2] w3, float[6, 16, 1, 1] w4, float[4, 8, 1, 1] w5,
 int64[2] parts = {{4, 4}}, float[4] scales = {{1.0, 1.0, 2.0, 2.0}}, int64[8] pads = {{0, 0, 0, 0, 0, 0, 0, 0}}>
{{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    l, r = Split <axis = 1> (a, parts)
    k = Conv <pads = [1, 1, 1, 1]> (l, w2)
    j = Concat <axis = 1> (k, r)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (j)
    u = ConvTranspose <strides = [2, 2]> (p, w3)
    q = Resize <mode = "nearest"> (p, , scales)
    o = Concat <axis = 1> (u, q)
    v = Pad (o, pads)
    y = Conv (v, w4)
    g = DepthToSpace <blocksize = 2> (j)
    h = SpaceToDepth <blocksize = 2> (g)
    z = Conv (h, w5)
}}
"""

ATTENTION = f"""{HEAD}
attention (float[1, 6, 8] x) => (float[1, 6, 4] y)
<float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, float[8] b, float[8] s, float[8, 4] wo,
 int64[4] heads = {{0, 0, 2, 4}}, int64[3] joined = {{0, 0, 8}}>
{{
    n = LayerNormalization <axis = -1> (x, s, b)
    q1 = MatMul (n, wq) q2 = Reshape (q1, heads) q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k1 = MatMul (n, wk) k2 = Reshape (k1, heads) k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v1 = MatMul (n, wv) v2 = Reshape (v1, heads) v = Transpose <perm = [0, 2, 1, 3]> (v2)
    e = MatMul (q, k) m = Softmax <axis = -1> (e) o1 = MatMul (m, v)
    o2 = Transpose <perm = [0, 2, 1, 3]> (o1) o = Reshape (o2, joined)
    y = MatMul (o, wo)
}}
"""

FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
called (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[8, 3, 3, 3] w1, float[4, 8, 1, 1] w2>
{
    a = local.Block (x, w1)
    b = local.Twice <alpha = 0.2> (a)
    y = Conv (b, w2)
}
<domain: "local", opset_import: ["" : 17]>
Block (v, w) => (o) { c = Conv <pads = [1, 1, 1, 1]> (v, w) o = Relu (c) }
<domain: "local", opset_import: ["" : 17]>
Twice <alpha> (v) => (o) { c = LeakyRelu <alpha: float = @alpha> (v) o = Add (c, v) }
"""


def raw(proto: onnx.ModelProto) -> Files:
    return {MODEL: proto.SerializeToString(deterministic=True)}


def grouped() -> Files:
    proto = build(GROUPED)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "ax"))
    proto.graph.node.insert(0, proto.graph.node.pop())
    return raw(proto)


def quantised() -> Files:
    proto = build(QUANTISED)
    rng = np.random.default_rng(0)
    for name, shape in (("q1", (6, 3, 3, 3)), ("q2", (4, 6, 1, 1))):
        array = rng.integers(-127, 128, shape).astype(np.int8)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return raw(proto)


def listed() -> Files:
    """Initializers listed as inputs, as the oldest files have them."""
    proto = build(CNN)
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return raw(proto)


def external() -> Files:
    """Every constant in one data file."""
    proto, data = build(CNN), b""
    for tensor in proto.graph.initializer:
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", str(len(data))), ("length", str(len(content)))):
            tensor.external_data.add(key=key, value=value)
        data += content
    return {**raw(proto), DATA: data}


def typed() -> Files:
    """Half precision, weights as numbers instead of bytes, one in a Constant node."""
    proto = build(CNN.replace("float[", "float16["))
    for tensor in proto.graph.initializer[:2]:
        values = numpy_helper.to_array(tensor).view(np.uint16).reshape(-1).tolist()
        tensor.ClearField("raw_data")
        tensor.int32_data.extend(values)
    weight = proto.graph.initializer.pop(2)
    proto.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    return raw(onnx.shape_inference.infer_shapes(proto))


SEED_MODELS: dict[str, Callable[[], Files]] = {
    "plain": lambda: raw(build(CNN)),
    "grouped": grouped,
    "reshaped": lambda: raw(build(RESHAPED)),
    "quantised": quantised,
    "branched": lambda: raw(build(BRANCHED)),
    "split": lambda: raw(build(SPLIT)),
    "attention": lambda: raw(build(ATTENTION)),
    "functions": lambda: raw(build(FUNCTIONS)),
    "listed": listed,
    "external": external,
    "typed": typed,
    **{f"random {seed}": (lambda seed=seed: raw(from_seed(seed))) for seed in range(RANDOM)},
}

"""Networks that sum, average or normalise over channels, unpool them, or read them by heads: half of the kernels are
removed, the result is proven, and removed channels count as zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from leanonnx.surgery.patch import plan_patch
from tests.calibrated import analysed, deviation, keep, net, normal_feeds
from tests.helpers import compressed, constant_shapes, saved
from tests.test_recovery import mended

GATE = (
    "(float[N,3,8,8] x) => (float[N,4,8,8] y)",
    "float[12,3,3,3] a, float[12] b, float[1,1,3,3] g, float[12,12,3,3] c, float[4,12,1,1] d",
    """h = Conv <pads = [1, 1, 1, 1]> (x, a, b) r = Relu (h) m = ReduceMean <axes = [1]> (r)
       k = Conv <pads = [1, 1, 1, 1]> (m, g) s = Sigmoid (k) f = Mul (r, s)
       q = Conv <pads = [1, 1, 1, 1]> (f, c) t = Relu (q) p = ReduceMean <axes = [1, 2, 3]> (t)
       o = Conv (t, d) y = Add (o, p)""",
)
STREAM = (
    "(float[N,5,3] x) => (float[N,5,2] y)",
    "float[3,8] a, float[8] g, float[8,12] b, float[12,8] c, float two = {2}, float tiny = {0.001}, float[8,2] d",
    """h = MatMul (x, a) p = Pow (h, two) m = ReduceMean <axes = [-1]> (p) e = Add (m, tiny) q = Sqrt (e)
       n = Div (h, q) s = Mul (n, g) u = MatMul (s, b) r = Relu (u) v = MatMul (r, c) z = Add (h, v)
       y = MatMul (z, d)""",
)
ROOT = (
    "(float[N,5,3] x) => (float[N,5,2] y)",
    "float[3,8] a, float[8] g, float[8,12] b, float[12,8] c, float[8,2] d",
    """h = MatMul (x, a) s = RMSNormalization <epsilon = 0.001> (h, g) u = MatMul (s, b) r = Relu (u)
       v = MatMul (r, c) z = Add (h, v) y = MatMul (z, d)""",
)
UNIT = (
    "(float[N,5,3] x) => (float[N,5,2] y)",
    "float[3,8] a, float[8] b, float[8,12] c, float[12,2] d",
    "h = MatMul (x, a) i = Add (h, b) n = LpNormalization (i) u = MatMul (n, c) r = Relu (u) y = MatMul (r, d)",
)
UNPOOLED = (
    "(float[1,3,8,8] x) => (float[1,4,8,8] y)",
    "float[8,3,3,3] a, float[12,8,3,3] b, float[8,12,3,3] c, float[4,8,3,3] d, int64[4] size = {1, 8, 8, 8}",
    """h = Conv <pads = [1, 1, 1, 1]> (x, a) r = Relu (h)
       p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
       k = Conv <pads = [1, 1, 1, 1]> (p, b) s = Relu (k) q = Conv <pads = [1, 1, 1, 1]> (s, c)
       t = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (q, i, size) y = Conv <pads = [1, 1, 1, 1]> (t, d)""",
)
HEADS = (
    "(float[N,5,6] x) => (float[N,5,6] y)",
    "float[6,8] q, float[6,4] k, float[6,4] v, float[8,6] o",
    """a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, v)
       d = Attention <q_num_heads = 4, kv_num_heads = 2> (a, b, c) y = MatMul (d, o)""",
)
TRACKER = (
    "(float[1,3,6,6] z, float[1,3,12,12] x) => (float[1,2,7,7] y)",
    "float[8,3,3,3] a, float[8,3,3,3] b, float[2,8,1,1] c, int64[4] apart = {8, 1, 4, 4}",
    """k = Conv (z, a) w = Reshape (k, apart) h = Conv (x, b) r = Relu (h) m = Conv <group = 8> (r, w)
       y = Conv (m, c)""",
)
SIAMESE = (
    "(float[1,3,6,6] z, float[1,3,12,12] x) => (float[1,1,7,7] y)",
    "float[8,3,3,3] a, float[8,3,3,3] b",
    "k = Conv (z, a) h = Conv (x, b) r = Relu (h) y = Conv (r, k)",
)
BATCH = (
    "(float[N,3,6,6] x) => (float[N,2,6,6] y)",
    "float[8,3,1,1] a, float[8] g, float[8] b, float[8] m, float[8] v = {1,1,1,1,1,1,1,1}, float[2,8,1,1] c",
    """h = Conv (x, a) n, o, w = BatchNormalization <training_mode = 1> (h, g, b, m, v) r = Relu (n) y = Conv (r, c)""",
)
NETWORKS = {
    "mean over channels": (GATE, 13, ("a", "c")),
    "decomposed RMSNormalization": (STREAM, 13, ("a", "b", "c", "d")),
    "RMSNormalization": (ROOT, 23, ("a", "b", "c", "d")),
    "LpNormalization": (UNIT, 13, ("a", "c")),
    "MaxUnpool": (UNPOOLED, 13, ("a", "b", "c")),
    "Attention": (HEADS, 23, ("q", "k", "v", "o")),
    "correlation by channel": (TRACKER, 13, ("a", "b")),
    "correlation": (SIAMESE, 13, ("a", "b")),
    "statistics of the batch": (BATCH, 15, ("a", "c")),
}
IR_VERSIONS = {13: 7, 15: 8, 23: 11}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_kernels_are_removed(name: str, tmp_path: Path) -> None:
    parts, opset, smaller = NETWORKS[name]
    source = saved(net(*parts, opset=opset, ir=IR_VERSIONS[opset]), tmp_path / "in.onnx")
    result = compressed(source, tmp_path / "out.onnx", 0.5)
    assert result.proof.passed
    before, after = constant_shapes(source), constant_shapes(tmp_path / "out.onnx")
    assert all(np.prod(after[constant]) < np.prod(before[constant]) for constant in smaller), after


def outputs(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


def test_removed_channels_count_as_zeros_in_a_mean(tmp_path: Path) -> None:
    """The compressed network against the original whose filters, and so the channels, are set to zero."""
    proto = net(*GATE, opset=13, ir=7)
    result = compressed(saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx", 0.5)
    for tensor in proto.graph.initializer:
        if tensor.name in "abc":
            array = numpy_helper.to_array(tensor).copy()
            kept = result.plan.tensors[tensor.name]["kept"][0]
            array[np.setdiff1d(np.arange(len(array)), range(len(array)) if kept is None else kept)] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    found = outputs(onnx.load(tmp_path / "out.onnx"), feed)
    np.testing.assert_allclose(found, outputs(proto, feed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [(GATE, 13), (ROOT, 23)], ids=["mean", "RMSNormalization"])
def test_half_precision_holds_the_scale(parts: tuple[tuple[str, str, str], int], tmp_path: Path) -> None:
    (interface, constants, body), opset = parts
    halves = [text.replace("float[", "float16[") for text in (interface, constants)]
    source = saved(net(*halves, body, opset=opset, ir=IR_VERSIONS[opset]), tmp_path / "in.onnx")
    assert compressed(source, tmp_path / "out.onnx", 0.5).proof.passed


@pytest.mark.parametrize("name", ["mean over channels", "decomposed RMSNormalization"])
def test_recovery_of_such_networks(name: str) -> None:
    parts, opset, _ = NETWORKS[name]
    dag = analysed(net(*parts, opset=opset, ir=IR_VERSIONS[opset]))
    axis = 1 if name == "mean over channels" else 2
    before, found = mended(dag, keep(dag, "h", range(6), axis), count=40, batch=2)
    unseen = normal_feeds(dag, 10, 77, 2)
    assert deviation(dag, found.proto, unseen) < 0.95 * deviation(dag, before, unseen)


def test_indices_that_others_read_are_pinned() -> None:
    dag = analysed(
        net(
            "(float[1,3,4,4] x) => (float[1,4] y, int64[1,8,2,2] i)",
            "float[8,3,1,1] a, float[32,4] b",
            """h = Conv (x, a) p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h) f = Flatten (p)
               y = Gemm (f, b)""",
        )
    )
    assert "it outputs indices that count across all channels" in {pin.reason.split(": ")[-1] for pin in dag.pins}


@pytest.mark.parametrize("method", ["lean", "path-mass", "l2", "random"])
def test_every_method_ranks_channels_that_are_only_summed(method: str, tmp_path: Path) -> None:
    """Of channels that only a sum reads some are removed, but not all of them before any other."""
    source = saved(
        net(
            "(float[N,3,6,6] x) => (float[N,2,6,6] y)",
            "float[8,3,3,3] a, float[8] b, float[12,3,3,3] c, float[12] e, float[2,12,1,1] d",
            """h = Conv <pads = [1, 1, 1, 1]> (x, a, b) r = Relu (h) m = ReduceMean <axes = [1]> (r)
               k = Conv <pads = [1, 1, 1, 1]> (x, c, e) s = Relu (k) f = Mul (s, m) y = Conv (f, d)""",
            opset=13,
            ir=7,
        ),
        tmp_path / "in.onnx",
    )
    calib = tmp_path / "data.npz"
    np.savez(calib, x=np.random.default_rng(0).standard_normal((16, 3, 6, 6)).astype(np.float32))
    options = {"calib": calib} if method == "path-mass" else {}
    result = compressed(source, tmp_path / "out.onnx", 0.6, method=method, **options)
    assert result.proof.passed
    assert constant_shapes(tmp_path / "out.onnx")["a"][0] > 1


@pytest.mark.parametrize(("batch", "phrase"), [("N", "fixed input sizes"), ("1", "in another form")])
def test_advice_fits_the_sizes(batch: str, phrase: str) -> None:
    """A model whose sizes are fixed is not to be exported with fixed sizes."""
    dag = analysed(
        net(
            f"(float[{batch},3,8,8] x) => (float[{batch},8,8,8] y)",
            """float[8,3,1,1] a, int64[4] first = {0, 0, 0, 0}, int64[4] last = {1, 8, 8, 8},
               int64[4] all = {0, 1, 2, 3}, int64[4] steps = {1, 2, 2, 1}, int64[8] pads = {0, 4, 2, 0, 0, 0, 2, 0}""",
            "h = Conv (x, a) s = Slice (h, first, last, all, steps) y = Pad (s, pads)",
        )
    )
    advices = {pin.advice for pin in dag.pins if "every n-th channel" in pin.reason}
    assert advices
    assert all(phrase in advice for advice in advices), advices


@pytest.mark.parametrize(("op", "gain"), [("ReduceMean", 1 / 12), ("ReduceSum", 1)])
def test_a_chain_through_a_reduction_has_its_gain(op: str, gain: float) -> None:
    """Each of twelve channels goes into a mean by a twelfth, and into a sum as it is."""
    body = f"""h = Conv <pads = [1, 1, 1, 1]> (x, a) axes = Constant <value = int64[1] {{1}}> () m = {op} (h, axes)
               y = Conv <pads = [1, 1, 1, 1]> (m, g)"""
    dag = analysed(
        net("(float[N,3,8,8] x) => (float[N,1,8,8] y)", "float[12,3,3,3] a, float[1,1,3,3] g", body, opset=18)
    )
    ((_, edges),) = dag.fixed_edges
    assert edges.gains is not None and edges.gains.tolist() == pytest.approx([gain] * 12)


def test_a_norm_from_which_nothing_is_removed_stays_as_it_is() -> None:
    dag = analysed(net(*ROOT, opset=23, ir=10))
    node = next(k for k, node in enumerate(dag.model.proto.graph.node) if node.op_type == "RMSNormalization")
    patch = plan_patch(dag, np.ones(dag.count, bool))
    assert node not in patch.attributes
    assert node not in {place for place, _ in (*patch.constants, *patch.scales)}

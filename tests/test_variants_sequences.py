"""Recurrent layers after convolutions and dense layers: their inputs become narrower, their hidden units stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.errors import ModelError
from leanonnx.rules import advice
from tests.variants import assert_pins, checked, given, network

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
H, WIDE = 10, 16
FEEDS_BACK = {"feeds its hidden units back into themselves": advice.NO_EXACT_FORM}
STARTS = {"takes its initial state or sequence lengths from it": advice.MAKE_CONSTANT}
BY_CONV = """c = Conv <pads = [1, 1]> (x, w1, b1) g = Relu (c) e = Conv (g, w2)
    f = Transpose <perm = [2, 0, 1]> (e)"""
BY_DENSE = """t = Transpose <perm = [2, 0, 1]> (x) c = MatMul (t, m1) g = Relu (c) f = MatMul (g, m2)"""
FRONTS = "float[20, 3, 3] w1, float[20] b1, float[16, 20, 1] w2, float[3, 20] m1, float[20, 16] m2"


def recurrent(
    op: str, ways: int = 1, front: str = BY_CONV, state: str = "", opset: int = 17, more: str = ""
) -> onnx.ModelProto:
    """Frames [12, N, 16] of a signal, a recurrent layer, and a dense layer on its whole sequence."""
    rows = GATES[op] * H
    way = "bidirectional" if ways > 1 else "forward"
    return given(
        network(
            "(float[N, 3, 12] x) => (float[t, N, 4] y)",
            f"""{FRONTS}, float[{ways}, {rows}, {WIDE}] w, float[{ways}, {rows}, {H}] r, float[{ways}, {2 * rows}] b,
            float[{ways * H}, 12] w3, float[12, 4] w4, float[7, 3, 1] w5, float[7, {H}] wh, float[7, {H}] wc""",
            f"""{front} {more} q = {op} <hidden_size = {H}, direction = "{way}"> (f, w, r, b{state})
            p = Transpose <perm = [0, 2, 1, 3]> (q) z = Reshape (p, flat) d = MatMul (z, w3) u = Relu (d)
            y = MatMul (u, w4)""",
            opset,
        ),
        flat=np.array([0, 0, ways * H]),
        ax=np.array([0]),
    )


def with_constant_state(op: str) -> onnx.ModelProto:
    """Initial states in the file, for a batch of one."""
    proto = recurrent(op, state=", , h0, c0" if op == "LSTM" else ", , h0")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    rng = np.random.default_rng(3)
    return given(proto, **{name: rng.standard_normal((1, 1, H)).astype(np.float32) for name in ("h0", "c0")})


def with_computed_state(op: str) -> onnx.ModelProto:
    """Initial states that a convolution computes from the same signal."""
    made = """v = Conv (x, w5) m = ReduceMean <axes = [2], keepdims = 0> (v) h1 = Gemm (m, wh) h0 = Unsqueeze (h1, ax)
        c1 = Gemm (m, wc) c0 = Unsqueeze (c1, ax)"""
    return recurrent(op, state=", , h0, c0" if op == "LSTM" else ", , h0", more=made if op == "LSTM" else made[:-47])


CASES = {
    **{f"{op} on convolutions": lambda op=op: recurrent(op) for op in GATES},
    **{f"{op} on dense layers": lambda op=op: recurrent(op, front=BY_DENSE) for op in GATES},
    **{f"{op} both ways": lambda op=op: recurrent(op, ways=2) for op in GATES},
    **{f"{op} from a constant": lambda op=op: with_constant_state(op) for op in GATES},
    **{f"{op} in operator set 22": lambda op=op: recurrent(op, opset=22) for op in GATES},
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_get_narrower_and_hidden_units_stay(name: str, tmp_path: Path) -> None:
    fixed = "constant" in name
    done = checked(CASES[name](), tmp_path, [{}] if fixed else [{"N": 1}, {"N": 3}])
    assert_pins(done, FEEDS_BACK)
    before = next(list(t.dims) for t in done.source.graph.initializer if t.name == "w")
    assert done.shapes["w"][:2] == before[:2]
    assert done.shapes["w"][2] < WIDE
    assert done.shapes["w3"][0] == before[0] * H


@pytest.mark.parametrize("op", GATES)
def test_computed_states_stay(op: str, tmp_path: Path) -> None:
    done = checked(with_computed_state(op), tmp_path, [{"N": 1}, {"N": 3}])
    assert_pins(done, FEEDS_BACK | STARTS)
    assert done.shapes["wh"][1] == H
    assert done.shapes["w"][2] < WIDE


LSTM = """float[8, 12] w0, float[1, 24, 12] w, float[1, 24, 6] r, float[1, 48] b, float[1, 18] pp, float[6, 10] w2,
    float[10, 4] w3"""
LAST = "s = Squeeze (q, ax) d = MatMul (s, w2) e = Relu (d) y = MatMul (e, w3)"
STATES = "(float[T, N, 8] x, int32[N] len, float[1, N, 6] h, float[1, N, 6] c) => (float[n, 4] y)"
SIZES = [{"T": 5, "N": 2}, {"T": 9, "N": 3}]


@pytest.mark.parametrize(
    "layer",
    [
        "u, q, v = LSTM <hidden_size = 6> (a, w, r, b, len, h, c, pp)",
        'u, v, q = LSTM <hidden_size = 6, direction = "reverse"> (a, w, r, b, len, h, c)',
    ],
)
def test_states_and_lengths_as_inputs(layer: str, tmp_path: Path) -> None:
    proto = given(network(STATES, LSTM, f"a0 = MatMul (x, w0) a = Relu (a0) {layer} {LAST}"), ax=np.array([0]))
    done = checked(proto, tmp_path, SIZES, keep=0.7)
    assert_pins(done, FEEDS_BACK | STARTS)
    assert done.shapes["w"][2] < 12


def test_batch_first_is_refused_by_onnxruntime(tmp_path: Path) -> None:
    layer = "u, q = LSTM <hidden_size = 6, layout = 1> (a, w, r, b)"
    signature = "(float[N, T, 8] x) => (float[n, 4] y)"
    proto = given(network(signature, LSTM, f"a0 = MatMul (x, w0) a = Relu (a0) {layer} {LAST}"), ax=np.array([1]))
    with pytest.raises(ModelError, match=r"onnxruntime cannot load the model.*layout"):
        checked(proto, tmp_path)


def stacked() -> onnx.ModelProto:
    """Two layers, one upon the other: the second reads hidden units, which stay."""
    return given(
        network(
            "(float[T, N, 8] x) => (float[t, n, 4] y)",
            """float[8, 12] w0, float[1, 24, 12] w, float[1, 24, 6] ra, float[1, 24, 6] wb, float[1, 24, 6] rb,
            float[6, 10] w2, float[10, 4] w3""",
            """a0 = MatMul (x, w0) a = Relu (a0) u = LSTM <hidden_size = 6> (a, w, ra) s = Squeeze (u, ax)
            v = LSTM <hidden_size = 6> (s, wb, rb) t = Squeeze (v, ax) d = MatMul (t, w2) e = Relu (d) y = MatMul (e,
        w3)""",
        ),
        ax=np.array([1]),
    )


def test_stacked(tmp_path: Path) -> None:
    done = checked(stacked(), tmp_path, SIZES, keep=0.7)
    assert_pins(done, FEEDS_BACK)
    assert done.shapes["w"][2] < 12
    assert done.shapes["wb"] == [1, 24, 6]


def reader_of_lines() -> onnx.ModelProto:
    """A convolutional network whose columns, channels times height, are read by a bidirectional LSTM."""
    vectors = {"zero": [0], "one": [1], "three": [3], "four": [4], "rest": [-1], "flat": [0, 0, 12]}
    return given(
        network(
            "(float[N, 1, 8, W] x) => (float[w, n, 6] y)",
            "float[12, 1, 3, 3] w1, float[16, 12, 3, 3] w2, float[2, 24, 32] w, float[2, 24, 6] r, float[12, 6] w3",
            """a = Conv <pads = [1, 1, 1, 1]> (x, w1) b = Relu (a) c = MaxPool <kernel_shape = [2, 1], strides = [2,
        1]> (b)
            d = Conv <pads = [1, 1, 1, 1]> (c, w2) e = Relu (d) f = MaxPool <kernel_shape = [2, 1], strides = [2, 1]>
        (e)
            s = Shape (f) n = Slice (s, zero, one, zero) v = Slice (s, three, four, zero)
            target = Concat <axis = 0> (n, rest, v) g = Reshape (f, target) h = Transpose <perm = [2, 0, 1]> (g)
            u = LSTM <hidden_size = 6, direction = "bidirectional"> (h, w, r) p = Transpose <perm = [0, 2, 1, 3]> (u)
            q = Reshape (p, flat) y = MatMul (q, w3)""",
        ),
        **{name: np.array(values) for name, values in vectors.items()},
    )


def test_columns_of_an_image(tmp_path: Path) -> None:
    """Each channel gives the LSTM as many inputs as the image is high."""
    done = checked(reader_of_lines(), tmp_path, [{"N": 1, "W": 16}, {"N": 2, "W": 24}], keep=0.7)
    assert_pins(done, FEEDS_BACK)
    assert done.shapes["w"][2] == 2 * done.shapes["w2"][0] < 32


def text() -> onnx.ModelProto:
    """An embedding of tokens, convolutions of two widths over them, the largest of each, a classifier."""
    return network(
        "(int64[N, T] ids) => (float[n, 3] y)",
        """float[20, 16] table, float[24, 16, 3] w1, float[24] b1, float[12, 16, 5] w2, float[10, 36] w3,
        float[3, 10] w4""",
        """e = Gather <axis = 0> (table, ids) t = Transpose <perm = [0, 2, 1]> (e) c = Conv <pads = [1, 1]> (t, w1, b1)
        d = Conv <pads = [2, 2]> (t, w2) r = Relu (c) s = Relu (d) m = ReduceMax <axes = [2], keepdims = 0> (r)
        n = ReduceMax <axes = [2], keepdims = 0> (s) j = Concat <axis = 1> (m, n) g = Gemm <transB = 1> (j, w3)
        h = Relu (g) y = Gemm <transB = 1> (h, w4)""",
    )


def test_embedding_loses_width(tmp_path: Path) -> None:
    """The columns of a table of tokens are channels; its rows stay."""
    done = checked(text(), tmp_path, [{"N": 2, "T": 8}, {"N": 1, "T": 11}])
    assert_pins(done, {})
    rows, width = done.shapes["table"]
    assert rows == 20
    assert width == done.shapes["w1"][1] == done.shapes["w2"][1] < 16

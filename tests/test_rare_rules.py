"""Rules at the edges of what they cover: calls that no valid model makes, and uses that are pinned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.channel_ids import on_axis
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Unsupported, Value, pin_all
from leanonnx.rules.table import DEFAULT_RULES
from tests.calibrated import analysed, net
from tests.rules.harness import check
from tests.shortened import observed
from tests.test_masked_equals_compact import killed
from tests.variants import given, network

MS = ', "com.microsoft" : 1'


def reasons(dag: ChannelDag, node: str) -> list[str]:
    """Reasons of the pins that name a node."""
    return sorted({pin.reason for pin in dag.pins if f"'{node}'" in pin.reason})


def value(*shape: int, axis: int | None = None, channel_ids: Any = None) -> Value:
    """An input with a channel for each index of an axis; a constant if there is no axis."""
    if axis is not None:
        channel_ids = on_axis(np.arange(1, shape[axis] + 1), axis, len(shape))
    return Value(
        name="v", shape=shape, channel_ids=channel_ids, read=lambda: np.ones(shape, np.float32), is_static=True
    )


def call(op: str, *inputs: Value | None, output: tuple[int, ...] | None = (1,), **attributes: Any) -> Call:
    """A call of a rule beside any model."""
    return Call(
        op=op,
        domain="",
        name="n",
        opset=21,
        attributes=attributes,
        inputs=inputs,
        outputs=("y",),
        output_shapes=(output,),
        mint=lambda n: np.arange(100, 100 + n),
        channel_count=lambda: 100,
    )


UNKNOWN = replace(value(1, 4, axis=1), shape=None)
MALFORMED = {
    "no input": (call("Relu", None), "input 0 is missing"),
    "fewer inputs than read": (call("Relu"), "input 0 is missing"),
    "input of unknown shape": (call("Transpose", UNKNOWN), "the shape of input 0 is unknown"),
    "output of unknown shape": (call("Reshape", value(1, 4, axis=1), output=None), "the shape of output 0 is unknown"),
    "queries of two axes": (
        call("Attention", *[value(4, 6, axis=1)] * 3, q_num_heads=2, kv_num_heads=2),
        "input 0 has 2 axes",
    ),
    "weight for other data": (
        call("Conv", value(1, 6, 4, 4, axis=1), value(8, 4, 1, 1), output=(1, 8, 4, 4)),
        "4 input channels in the weight, 6 in the data",
    ),
    "grouped weight for other data": (
        call("Conv", value(1, 6, 4, 4, axis=1), value(8, 4, 1, 1), output=(1, 8, 4, 4), group=2),
        "8 input channels in the weight, 6 in the data",
    ),
    "transform of real and imaginary parts": (
        call("DFT", value(1, 6, 4, 2, axis=1), None, replace(value(), read=lambda: np.array(3))),
        "it transforms real and imaginary parts",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_rule_refuses_what_it_cannot_read(name: str) -> None:
    made, reason = MALFORMED[name]
    with pytest.raises(Unsupported, match=reason):
        DEFAULT_RULES["", made.op](made)


def test_advice_names_no_sizes_to_fix_where_all_are_fixed() -> None:
    texts = [text for name, text in vars(advice).items() if name.isupper()]
    changed = {text: advice.for_fixed_sizes(text) for text in texts if advice.for_fixed_sizes(text) != text}
    assert changed == {
        advice.MAKE_CONSTANT: "export it as a constant (freeze it)",
        advice.EXPORT_AGAIN: f"export this part in another form, or {advice.write_rule()}",
    }
    assert len(texts) > len(changed)


IMAGE = "(float[1, 3, 8, 8] x, float[1, 3, 4, 4] z) => (float[N, M, H, W] y)"
PINNED = {
    "correlation along the channels": (
        network(
            "(float[1, 3, 8, 2] x, float[1, 3, 1, 3] z) => (float[N, M, H, W] y)",
            "float[2, 6] w, float[3, 3, 1, 1] v",
            "a = MatMul (x, w) k = Conv (z, v) y = Conv (a, k)",
        ),
        "it runs along the channels",
    ),
    "correlation with a computed bias": (
        network(
            IMAGE,
            "float[6, 3, 1, 1] w, int64[1] one = {1}",
            """a = Conv (x, w) k = Conv (z, w) m = ReduceMean <keepdims = 0> (z) b = Reshape (m, one)
            y = Conv (a, k, b)""",
        ),
        "its bias is computed at run time",
    ),
    "correlation of what is not zero": (
        network(
            IMAGE,
            "float[6, 3, 1, 1] w",
            "a = Conv (x, w) e = Exp (a) k = Conv (z, w) f = Exp (k) y = Conv (e, f)",
        ),
        "which would not be zero when their layers output zeros",
    ),
    "tuples along two axes": (
        given(
            network(
                "(float[1, 2] x) => (float[N, M] y)",
                "float[2, 3] w, float[4, 4] data, int64[1] flat = {3}, int64[3, 2] at, float[4, 2] v",
                "a = MatMul (x, w) u = Reshape (a, flat) s = ScatterND (data, at, u) y = MatMul (s, v)",
            ),
            at=np.array([[0, 1], [1, 2], [2, 3]]),
        ),
        "the channels of its updates do not lie on a single axis of the output",
    ),
    "sum of rows and columns": (
        given(
            network(
                "(float[1, 2] x) => (float[N, M, K] y)",
                "float[2, 6] w, float[2, 5] v, int64[1] last, int64[1] first, float[5, 2] u",
                """a = MatMul (x, w) c = Unsqueeze (a, last) b = MatMul (x, v) d = Unsqueeze (b, first)
                s = Add (c, d) y = MatMul (s, u)""",
            ),
            last=np.array([2]),
            first=np.array([1]),
        ),
        "its operands hold channels on different axes",
    ),
    "recurrent layer that reads a constant": (
        network(
            "(float[1, 2] x) => (float[N, M] y)",
            """float[2, 6] w, float[2, 1, 4] data, float[1, 24, 4] wr, float[1, 24, 6] rr, int64[3] shape = {1, 1, 6},
            int64[2] flat = {1, 6}, float[6, 2] v""",
            """a = MatMul (x, w) h = Reshape (a, shape) all, s, c = LSTM <hidden_size = 6> (data, wr, rr, , , h)
            r = Reshape (s, flat) y = MatMul (r, v)""",
            opset=14,
        ),
        "its input is constant, only its state is computed",
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_a_use_without_an_exact_form_is_pinned(name: str, tmp_path: Path) -> None:
    proto, reason = PINNED[name]
    dag = observed(proto, tmp_path)
    assert any(reason in pin.reason for pin in dag.pins), {pin.reason for pin in dag.pins}
    check(dag, killed(dag, np.random.default_rng(0)))


EXACT = {
    "integers within each channel": (
        network(
            "(float[1, 3, 8, 8] x) => (float[N, M, H, W] y)",
            """float[6, 3, 1, 1] w, float scale = {0.05}, uint8 zero = {128}, int8[8, 4] k, int8[4] own = {1, 2, 3, 4},
            float[2, 6, 1, 1] v""",
            """a = Conv (x, w) q = QuantizeLinear (a, scale, zero) m = MatMulInteger (q, k, zero, own)
            f = Cast <to = 1> (m) y = Conv (f, v)""",
        ),
        "MatMulInteger",
    ),
    "heads that share an input without channels": (
        given(
            network(
                "(float[1, 5, 3] x, float[1, 1, 4, 7] z) => (float[N, M, K] y)",
                "float[3, 8] w, int64[4] split, int64[3] joined, float[14, 2] v",
                """a = MatMul (x, w) r = Reshape (a, split) q = Transpose <perm = [0, 2, 1, 3]> (r) m = MatMul (q, z)
                t = Transpose <perm = [0, 2, 1, 3]> (m) j = Reshape (t, joined) y = MatMul (j, v)""",
            ),
            split=np.array([0, 0, 2, 4]),
            joined=np.array([0, 0, 14]),
        ),
        "MatMul",
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_use_with_an_exact_form(name: str, tmp_path: Path) -> None:
    proto, op = EXACT[name]
    dag = observed(proto, tmp_path)
    assert not [pin.reason for pin in dag.pins if f"{op} 'M'" in pin.reason]
    alive = ~np.isin(dag.groups, dag.groups[dag.channel_ids["a"].reshape(-1)[:1]])
    assert 0 < alive[dag.channel_ids["m"]].sum() < dag.channel_ids["m"].size
    check(dag, alive)


def test_rows_written_over_a_tensor_without_channels_stay() -> None:
    """The tensor that ScatterND writes into is as wide as its rows, and keeps its width."""
    dag = analysed(
        net(
            "(float[2,2] x, float[2,3,4] z) => (float[2,3] y)",
            "int64[2,2] at = {0, 1, 1, 2}, float[2,4] w, float[1] b, float[12,3] v",
            "u = MatMul (x, w) d = Add (z, b) s = ScatterND (d, at, u) f = Flatten (s) y = MatMul (f, v)",
        )
    )
    assert dag.pinned_groups[dag.groups[dag.channel_ids["u"]]].all()


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = MatMul (x, w)", "float[4,3] w"),
        ("r, y = GRU <hidden_size = 2> (x, w, u)", "float[1,6,4] w, float[1,6,2] u"),
        ('y = Einsum <equation = "btc,co->bto"> (x, w)', "float[4,3] w"),
    ],
)
def test_channels_of_rows_lie_along_the_last_axis(body: str, weights: str) -> None:
    dag = analysed(net("(float[2,5,4] x) => (float[A,B,C] y)", weights, body))
    ((_, block),) = [pair for pair in dag.kernel_blocks if pair[1].input_channel_ids is not None]
    assert block.input_axis % 3 == 2


def test_a_node_that_is_pinned_is_named_by_its_first_output() -> None:
    made = replace(
        call("TopK", value(1, 4, axis=1), output=(1, 4)), outputs=("values", "indices"), output_shapes=((1, 4),) * 2
    )
    assert [pin.tensor for pin in pin_all(made, "why").pins] == [made.value(0).name, "values"]

"""Slice, Gather, Scatter and Pad on the channel axis and beside it, as exporters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.rules import advice
from tests.test_variants_layouts import sorted_nodes
from tests.variants import assert_pins, checked, given, network

WIDTH = 12


def between(body: str, constants: str = "", read: int = WIDTH, opset: int = 17, **values: object) -> onnx.ModelProto:
    """Two convolutions before the operators under test, which lead from ``c`` to ``d``, and two after."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 2, h, w] y)",
        f"""float[16, 3, 3, 3] w0, float[{WIDTH}, 16, 3, 3] w1, float[{WIDTH}] b1, float[16, {read}, 3, 3] w2,
        float[2, 16, 1, 1] w3{", " if constants else ""}{constants}""",
        f"""a = Conv <pads = [1, 1, 1, 1]> (x, w0) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
        {body}
        e = Conv <pads = [1, 1, 1, 1]> (d, w2) f = Relu (e) y = Conv (f, w3)""",
        opset,
    )
    return given(proto, **values)


def sliced(start: int, end: int, axis: int, step: int, read: int = WIDTH) -> onnx.ModelProto:
    return between("d = Slice (c, s, e0, ax, st)", read=read, s=[start], e0=[end], ax=[axis], st=[step])


def table(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).permutation(WIDTH).reshape(shape)


LOWEST = np.iinfo(np.int64).min
ROLL = """n = Slice (c, one, end, axis) m = Slice (c, zero, one, axis) d = Concat <axis = {axis}> (n, m)"""
PLACES = np.stack(np.broadcast_arrays(0, np.array([[2, 5, 7]])), -1)
"""Tuples (batch, channel) of three channels."""
CASES = {
    "channels from 2 to 9": lambda: sliced(2, 9, 1, 1, 7),
    "every second channel": lambda: sliced(0, 1 << 40, 1, 2, 6),
    "channels backward": lambda: sliced(-1, LOWEST, 1, -1),
    "channels backward by two": lambda: sliced(10, 0, 1, -2, 5),
    "negative bounds": lambda: sliced(-5, -1, -3, 1, 4),
    "rows backward": lambda: sliced(-1, LOWEST, 2, -1),
    "channels rolled": lambda: between(ROLL.format(axis=1), one=[5], end=[1 << 40], zero=[0], axis=[1]),
    "rows rolled": lambda: between(ROLL.format(axis=2), one=[3], end=[1 << 40], zero=[0], axis=[2]),
    "space to depth by slices": lambda: between(
        """p = Slice (c, o0, end, hw, two) q = Slice (c, o1, end, hw, two) u = Slice (c, o2, end, hw, two)
        v = Slice (c, o3, end, hw, two) d = Concat <axis = 1> (p, q, u, v)""",
        read=4 * WIDTH,
        **{f"o{k}": [k // 2, k % 2] for k in range(4)},
        end=[1 << 40, 1 << 40],
        hw=[2, 3],
        two=[2, 2],
    ),
    "one channel by a scalar": lambda: between(
        "g = Gather <axis = 1> (c, i) d = Unsqueeze (g, ax)", read=1, i=3, ax=[1]
    ),
    "some channels twice": lambda: between("d = Gather <axis = 1> (c, i)", read=5, i=[0, 3, 3, -1, 7]),
    "a table of channels": lambda: between(
        "g = Gather <axis = 1> (c, i) d = Reshape (g, s)", i=table((3, 4)), s=[0, 12, 8, 8]
    ),
    "a permutation and back": lambda: between(
        "g = Gather <axis = 1> (c, i) t = Tanh (g) d = Gather <axis = 1> (t, j)",
        i=table((WIDTH,)),
        j=np.argsort(table((WIDTH,))),
    ),
    "columns": lambda: between("d = Gather <axis = 3> (c, i)", i=[0, 2, 4, 6]),
    "borders around channels": lambda: between("d = Pad (c, p)", read=WIDTH + 3, p=[0, 1, 0, 0, 0, 2, 0, 0]),
    "filled borders": lambda: between("d = Pad (c, p, v)", read=WIDTH + 3, p=[0, 1, 0, 0, 0, 2, 0, 0], v=np.float32(2)),
    "channels cut off": lambda: between("d = Pad (c, p)", read=WIDTH - 3, p=[0, -1, 0, 0, 0, -2, 0, 0]),
    "pixels mirrored": lambda: between('d = Pad <mode = "reflect"> (c, p)', p=[0, 0, 1, 1, 0, 0, 2, 1]),
    "pixels cut off": lambda: between("d = Pad (c, p)", p=[0, 0, -1, -1, 0, 0, -1, -2]),
    "a residual into wider channels": lambda: between(
        "p = Pad (r, a0) q = Conv (c, wq) d = Add (p, q)",
        "float[20, 12, 1, 1] wq",
        read=20,
        a0=[0, 2, 0, 0, 0, 2, 0, 0],
    ),
    "rows assigned": lambda: between("d = ScatterND (c, i, u)", f"float[1, {WIDTH}, 8, 8] u", i=[[0]]),
    "channels assigned": lambda: between(
        "u = Tanh (p) p = Slice (c, zero, three, one) d = ScatterND (c, i, u)", one=[1], zero=[0], three=[3], i=PLACES
    ),
    "columns assigned": lambda: between(
        "s = Sin (c) g = GatherElements <axis = 3> (s, k) d = ScatterElements <axis = 3> (c, k, g)",
        k=np.broadcast_to(np.arange(7, -1, -1), (1, WIDTH, 8, 8)),
    ),
}
OF_ONE = {"rows assigned", "channels assigned", "columns assigned"}
"""Networks whose constants are made for a batch of one."""


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_pinned_within(name: str, tmp_path: Path) -> None:
    proto = sorted_nodes(CASES[name]())
    assert_pins(checked(proto, tmp_path, [{"N": 1}] if name in OF_ONE else [{"N": 1}, {"N": 3}]), {})


@pytest.mark.parametrize("node", ["Slice (c, b, e0, ax)", "Gather <axis = 1> (c, b)"])
def test_computed_places(node: str, tmp_path: Path) -> None:
    """The input decides the channels that are read: all of them are pinned, with the reason."""
    body = f"""m = ReduceMax <keepdims = 0> (x) s = Sign (m) i = Cast <to = 7> (s) b = Unsqueeze (i, zero)
        e0 = Add (b, four) d = {node}"""
    proto = between(body, read=4 if "Slice" in node else 1, zero=[0], four=[4], ax=[1])
    done = checked(proto, tmp_path, [{"N": 1}, {"N": 2}], keep=0.7)
    assert_pins(done, {"input 1 is computed from a graph input": advice.MAKE_CONSTANT})
    assert done.shapes["w1"][0] == WIDTH

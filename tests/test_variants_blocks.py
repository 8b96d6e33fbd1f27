"""Blocks of published networks between two convolutions: gates, normalisations, attention over pixels and channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.errors import BudgetUnreachable
from leanonnx.rules import advice
from tests.variants import Pins, Sizes, assert_pins, checked, compress, given, network

IMAGE = [{"N": 1, "H": 8, "W": 8}]
ANY = [*IMAGE, {"N": 2, "H": 12, "W": 16}]
TRIED = {"x": (1, 3, 8, 8)}
"""The size to look at: at the sizes that are tried first, attention over pixels would fill the memory."""
REDUCES = {"it reduces over the channels": advice.NO_EXACT_FORM}


def block(body: str, constants: str = "", read: int = 12, opset: int = 17, **values: object) -> onnx.ModelProto:
    """A convolution and a rectifier to ``c``, the block under test to ``d``, and two convolutions."""
    proto = network(
        "(float[N, 3, H, W] x) => (float[N, 2, h, w] y)",
        f"""float[12, 3, 3, 3] w1, float[12] b1, float[16, {read}, 3, 3] w2, float[2, 16, 1, 1] w3, float two = {{2.0}},
        float eps = {{0.001}}{", " if constants else ""}{constants}""",
        f"""a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) c = Relu (a) {body}
        e = Conv <pads = [1, 1, 1, 1]> (d, w2) f = Relu (e) y = Conv (f, w3)""",
        opset,
    )
    return given(proto, **values)


def projected(body: str, width: int, **values: object) -> onnx.ModelProto:
    """Queries, keys and values by 1×1 convolutions, attention to ``o``, a residual."""
    weights = ", ".join(f"float[{width}, 12, 1, 1] {name}" for name in ("wq", "wk", "wv"))
    return block(
        f"""q0 = Conv (c, wq) k0 = Conv (c, wk) v0 = Conv (c, wv) q = Reshape (q0, fold) k = Reshape (k0, fold)
        v = Reshape (v0, fold) {body} s0 = Shape (v0) o1 = Reshape (o, s0) o2 = Conv (o1, wo) d = Add (o2, c)""",
        f"{weights}, float[12, {width}, 1, 1] wo",
        **values,
    )


FREE = {
    "GroupNormalization": lambda: block(
        "d = GroupNormalization <num_groups = 4> (c, ga, be)", "float[12] ga, float[12] be", opset=21
    ),
    "GroupNormalization as exporters write it": lambda: block(
        """s = Reshape (c, fold) i = InstanceNormalization (s, ones, zeros) sh = Shape (c) r = Reshape (i, sh)
        m = Mul (r, ga) d = Add (m, be)""",
        "float[12, 1, 1] ga, float[12, 1, 1] be, float[3] ones = {1.0, 1.0, 1.0}, float[3] zeros = {0.0, 0.0, 0.0}",
        fold=[0, 3, -1],
    ),
    "InstanceNormalization by means": lambda: block(
        """m = ReduceMean <axes = [2, 3]> (c) z = Sub (c, m) p = Mul (z, z) v = ReduceMean <axes = [2, 3]> (p)
        q = Add (v, eps) s = Sqrt (q) d = Div (z, s)"""
    ),
    "gated linear unit": lambda: block(
        "p, q = Split <axis = 1> (c, halves) r = Sigmoid (q) d = Mul (p, r)", read=6, halves=[6, 6]
    ),
    "simple gate": lambda: block(
        "p = Slice (c, zero, six, one) q = Slice (c, six, end, one) d = Mul (p, q)",
        read=6,
        zero=[0],
        six=[6],
        end=[12],
        one=[1],
    ),
    "maxout": lambda: block("p, q = Split <axis = 1> (c, halves) d = Max (p, q)", read=6, halves=[6, 6]),
    "PRelu per channel": lambda: block("d = PRelu (c, s)", "float[12, 1, 1] s"),
    "where": lambda: block("g = Greater (c, eps) d = Where (g, c, two)"),
    "sub-pixel upsampling": lambda: block('d = DepthToSpace <blocksize = 2, mode = "CRD"> (c)', read=3),
    "anti-aliased downsampling": lambda: block(
        """u = Resize <mode = "linear"> (c, , by) d = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (u)""",
        "float[4] by = {1.0, 1.0, 2.0, 2.0}",
    ),
    "image-level features": lambda: block(
        """p = GlobalAveragePool (c) q = Conv (p, wq) s = Shape (c) hw = Slice (s, at2, at4, at0) t = Shape (q)
        nc = Slice (t, at0, at2, at0) size = Concat <axis = 0> (nc, hw) u = Resize <mode = "nearest"> (q, , , size)
        g = Expand (p, s) d = Concat <axis = 1> (u, c, g)""",
        "float[10, 12, 1, 1] wq",
        read=34,
        at0=[0],
        at2=[2],
        at4=[4],
    ),
    "attention over channels by heads": lambda: projected(
        """qn = LpNormalization <axis = -1> (q) kn = LpNormalization <axis = -1> (k)
        kt = Transpose <perm = [0, 1, 3, 2]> (kn) s = MatMul (qn, kt) p = Softmax (s) o = MatMul (p, v)""",
        12,
        fold=[0, 3, 4, -1],
    ),
    "RMSNormalization as exporters write it": lambda: block(
        """t = Transpose <perm = [0, 2, 3, 1]> (c) p = Pow (t, two) m = ReduceMean <axes = [-1]> (p)
        q = Add (m, eps) s = Sqrt (q) v = Div (t, s) u = Mul (v, ga) d = Transpose <perm = [0, 3, 1, 2]> (u)""",
        "float[12] ga",
    ),
    "unpooling": lambda: block(
        """p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
        d = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (p, i)"""
    ),
}
"""Blocks in which every channel is removable."""
TOGETHER = {"RMSNormalization as exporters write it"}
"""Those of them that take channels together."""

HELD: dict[str, tuple[object, Pins]] = {
    "LayerNormalization as exporters write it": (
        lambda: block(
            """t = Transpose <perm = [0, 2, 3, 1]> (c) m = ReduceMean <axes = [-1]> (t) z = Sub (t, m) p = Pow (z, two)
            v = ReduceMean <axes = [-1]> (p) q = Add (v, eps) s = Sqrt (q) u = Div (z, s)
            d = Transpose <perm = [0, 3, 1, 2]> (u)"""
        ),
        REDUCES,
    ),
    "spatial attention of CBAM": (
        lambda: block(
            """m = ReduceMean <axes = [1]> (c) n = ReduceMax <axes = [1]> (c) j = Concat <axis = 1> (m, n)
            k0 = Conv <pads = [1, 1, 1, 1]> (j, k) s = Sigmoid (k0) d = Mul (c, s)""",
            "float[1, 2, 3, 3] k",
        ),
        REDUCES,
    ),
    "softmax over channels": (
        lambda: block("s = Softmax <axis = 1> (c) d = Mul (s, c)"),
        {"it normalises over the channels": advice.NO_EXACT_FORM},
    ),
    "local response normalisation": (
        lambda: block("d = LRN <size = 3> (c)"),
        {"it divides each channel by its neighbours": advice.NO_EXACT_FORM},
    ),
    "bounds that are computed": (
        lambda: block("m = ReduceMax <keepdims = 0> (x) d = Clip (c, , m)"),
        {"reads it as a parameter": advice.MAKE_CONSTANT},
    ),
    "non-local block": (
        lambda: projected(
            """qt = Transpose <perm = [0, 2, 1]> (q) s = MatMul (qt, k) p = Softmax (s)
            vt = Transpose <perm = [0, 2, 1]> (v) z = MatMul (p, vt) o = Transpose <perm = [0, 2, 1]> (z)""",
            6,
            fold=[0, 6, -1],
        ),
        {"it multiplies two computed tensors over their channels": advice.NO_EXACT_FORM},
    ),
}
"""Blocks that pin some channels, with the reasons and the advice."""


@pytest.mark.parametrize("name", FREE)
def test_every_channel_may_go(name: str, tmp_path: Path) -> None:
    done = checked(FREE[name](), tmp_path, ANY, zeroed=name in TOGETHER, shapes=TRIED)
    assert_pins(done, {})
    assert done.shapes["w1"][0] < 12


def sizes(name: str) -> list[Sizes]:
    """Softmax over pixels runs at the observed size only: its sums are too long at others."""
    return IMAGE if name == "non-local block" else ANY


@pytest.mark.parametrize("name", HELD)
def test_kept_channels_have_a_reason(name: str, tmp_path: Path) -> None:
    make, pins = HELD[name]
    done = checked(make(), tmp_path, sizes(name), shapes=TRIED)
    assert_pins(done, pins)


def test_convolution_along_the_channels(tmp_path: Path) -> None:
    """Efficient channel attention: each gate depends on neighbouring channels, so none can be removed alone."""
    proto = block(
        """p = GlobalAveragePool (c) q = Squeeze (p, last) r = Transpose <perm = [0, 2, 1]> (q)
        s = Conv <pads = [1, 1]> (r, k) t = Transpose <perm = [0, 2, 1]> (s) u = Unsqueeze (t, last) v = Sigmoid (u)
        d = Mul (c, v)""",
        "float[1, 1, 3] k",
        last=[3],
    )
    done = checked(proto, tmp_path, ANY, shapes=TRIED)
    assert done.shapes["w1"] == [12, 3, 3, 3]
    with pytest.raises(BudgetUnreachable, match=r"12 of the 12 channels of 'a' can only be removed|runs along"):
        compress(proto, tmp_path, keep=0.1, shapes=TRIED)


def test_convolution_with_computed_weights(tmp_path: Path) -> None:
    """A kernel for each channel, made by a layer that loses the same channels."""
    proto = block(
        "p = GlobalAveragePool (c) q = Conv (p, wq) w = Reshape (q, kernels) d = Conv <group = 12> (c, w)",
        "float[12, 12, 1, 1] wq",
        kernels=np.array([12, 1, 1, 1]),
    )
    done = checked(proto, tmp_path, IMAGE, keep=0.6, shapes=TRIED)
    assert_pins(done, {})
    assert done.shapes["w1"][0] == done.shapes["wq"][0] == done.shapes["w2"][1] < 12

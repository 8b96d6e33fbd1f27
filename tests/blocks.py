"""Blocks with branches as exporters write them."""

from __future__ import annotations

FRAME = """
<ir_version: 8, opset_import: ["" : 17]>
framed (float[1, 4, 6, 6] x) => (float[n, m, h, w] z)
<float[4, 4, 3, 3] w0, float[4, 4, 1, 1] v, float[4, 4, 1, 1] w, float[4, 4, 3, 3] u, float[4, 4, 1, 1] w4,
 float[4, 4, 1, 1] x2, float[1, 4, 3, 3] one, float[1, 4, 1, 1] c4, float[4] b4, float[4] c5 = {1, 1, 2, 1},
 float[2, 4, 1, 1] squeeze, float[4, 2, 1, 1] excite, float low = {0.0}, float high = {1.0},
 float[6, 6] m6, float[4, 4, 1] v3, int64[3] flat = {1, 4, 36},
 float[4, 4] rows, int64[4] four = {1, 4, 1, 1}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w0)
    s = Relu (c)
    BODY
}
"""
"""A stream ``s`` of 4 channels, and constants that a block may read; the block outputs ``z``."""
GATE = "p = GlobalAveragePool (s)  q = Conv (p, squeeze)  r = Relu (q)  o = Conv (r, excite)  g = {}  z = Mul (s, g)"


def framed(body: str) -> str:
    """A model around a block."""
    return FRAME.replace("BODY", body)


BASIC = """
<ir_version: 8, opset_import: ["" : 17]>
basic (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y)
<float[4, 3, 3, 3] w0, float[4] b0, float[5, 4, 3, 3] w1, float[4, 5, 1, 1] w2, float[4] b2,
 float[5] ng, float[5] nb, float[5] nm, float[5] nv = {1, 1.5, 0.5, 1, 2}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    s = Relu (c)
    a = Conv <pads = [1, 1, 1, 1]> (s, w1)
    n = BatchNormalization (a, ng, nb, nm, nv)
    r = Relu (n)
    f = Conv (r, w2, b2)
    z = Add (f, s)
    y = Relu (z)
}
"""
BOTTLENECK = """
<ir_version: 8, opset_import: ["" : 17]>
bottleneck (float[N, 3, 6, 6] x) => (float[N, 2, 3, 3] y)
<float[4, 3, 3, 3] w0, float[3, 4, 1, 1] w1, float[3, 3, 3, 3] w2, float[6, 3, 1, 1] w3, float[6] b3,
 float[6, 4, 1, 1] wk, float[6] g, float[6] h, float[6] m, float[6] v = {1, 1.5, 0.5, 1, 2, 1}, float[2, 6, 1, 1] u>
{
    t = Conv <pads = [1, 1, 1, 1]> (x, w0)
    s = Relu (t)
    a = Conv (s, w1)
    ra = Relu (a)
    b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (ra, w2)
    rb = Relu (b)
    c = Conv (rb, w3, b3)
    f = BatchNormalization (c, g, h, m, v)
    p = Conv <strides = [2, 2]> (s, wk)
    k = BatchNormalization (p, h, g, m, v)
    z = Add (f, k)
    q = Relu (z)
    y = Conv (q, u)
}
"""
WEIGHTS = "float[3, 3, 1, 1] w0, float[6, 3, 1, 1] w1, float[6, 1, 3, 3] w2, float[3, 6, 1, 1] w3, float[2, 3, 1, 1] w4"


def inverted(opset: int) -> str:
    """A block that widens, whose weights old IR versions list as inputs."""
    old = opset < 9
    return f"""
        <ir_version: {3 if old else 10}, opset_import: ["" : {opset}]>
        inverted (float[1, 3, 6, 6] x{f", {WEIGHTS}" if old else ""}) => (float[1, 2, 6, 6] y) <{WEIGHTS}>
        {{
            s = Conv (x, w0)
            a = Conv (s, w1)
            ra = Relu (a)
            d = Conv <group = 6, pads = [1, 1, 1, 1]> (ra, w2)
            rd = Relu (d)
            f = Conv (rd, w3)
            z = Add (s, f)
            y = Conv (z, w4)
        }}
    """


NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
nested (float[1, 3, 6, 6] x) => (float[1, 2, 6, 6] y)
<float[4, 3, 3, 3] w0, float[5, 4, 1, 1] w1, float[2, 5, 1, 1] w2, float[5, 2, 1, 1] w3, float[4, 5, 1, 1] w4,
 float[2, 4, 1, 1] u, float three = {3}, float low = {0}, float six = {6}>
{
    s = Conv <pads = [1, 1, 1, 1]> (x, w0)
    a = Conv (s, w1)
    p = ReduceMean <axes = [2, 3], keepdims = 1> (a)
    q = Conv (p, w2)
    r = Relu (q)
    e = Conv (r, w3)
    e3 = Add (e, three)
    l = Clip (e3, low, six)
    d = Div (l, six)
    g = Mul (d, a)
    f = Conv (g, w4)
    z = Add (s, f)
    y = Conv (z, u)
}
"""

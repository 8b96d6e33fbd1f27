"""Attention as exporters write it: heads lose whole, values their width, the normalised stream keeps all channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.rules import advice
from tests.variants import assert_pins, checked, given, network

T, C, HEADS, D = 6, 24, 4, 6


def block(attention: str, constants: str, opset: int = 17, norm: bool = True, **values: object) -> onnx.ModelProto:
    """A transformer block [N, 6, 24]: attention from ``n`` to ``o``, then the MLP."""
    first = "n = LayerNormalization (e, g1, h1)" if norm else "n = Identity (e)"
    second = "m = LayerNormalization (r, g2, h2)" if norm else "m = Identity (r)"
    proto = network(
        f"(float[N, {T}, 8] x) => (float[N, {T}, 5] y)",
        f"""float[8, {C}] we, float[{C}] be, float[{C}] g1, float[{C}] h1, float[{C}] g2, float[{C}] h2,
        float[{C}, 96] wu, float[96] bu, float[96, {C}] wd, float[{C}] bd, float[{C}, 5] wy, {constants}""",
        f"""e0 = MatMul (x, we) e = Add (e0, be) {first} {attention} r = Add (o, e) {second}
        u0 = MatMul (m, wu) u1 = Add (u0, bu) u = Relu (u1) d0 = MatMul (u, wd) d1 = Add (d0, bd) f = Add (d1, r)
        y = MatMul (f, wy)""",
        opset,
    )
    return given(proto, **values)


SPLIT = np.array([0, T, HEADS, D])
WHOLE = np.array([0, T, C])
SCORES = "s = MatMul (q, k) s1 = Mul (s, by)"
OUT = "z = Transpose <perm = [0, 2, 1, 3]> (v2) z1 = Reshape (z, whole) o = MatMul (z1, wo)"
THREE = """q0 = MatMul (n, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k0 = MatMul (n, wk) k1 = Reshape (k0, split) k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v0 = MatMul (n, wv) v1 = Reshape (v0, split) v = Transpose <perm = [0, 2, 1, 3]> (v1)"""
WEIGHTS = f"float[{C}, {C}] wq, float[{C}, {C}] wk, float[{C}, {C}] wv, float[{C}, {C}] wo, float by = {{0.4}}"
FUSED = f"float[{C}, {3 * C}] wi, float[{3 * C}] bi, float[{C}, {C}] wo, float by = {{0.4}}"
BOTH = {"split": SPLIT, "whole": WHOLE}


def separate(**more: bool) -> onnx.ModelProto:
    return block(f"{THREE} {SCORES} p = Softmax (s1) v2 = MatMul (p, v) {OUT}", WEIGHTS, **BOTH, **more)


def fused_by_split() -> onnx.ModelProto:
    attention = f"""i0 = MatMul (n, wi) i1 = Add (i0, bi) q0, k0, v0 = Split <axis = -1> (i1, sizes)
        q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k1 = Reshape (k0, split) k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v1 = Reshape (v0, split) v = Transpose <perm = [0, 2, 1, 3]> (v1)
        {SCORES} p = Softmax (s1) v2 = MatMul (p, v) {OUT}"""
    return block(attention, FUSED, sizes=[C, C, C], **BOTH)


def fused_by_gather() -> onnx.ModelProto:
    """As timm writes it: [N, T, 3, heads, D] turned to [3, N, heads, T, D], then an index for each."""
    attention = f"""i0 = MatMul (n, wi) i1 = Add (i0, bi) i2 = Reshape (i1, five)
        i3 = Transpose <perm = [2, 0, 3, 1, 4]> (i2) q = Gather <axis = 0> (i3, zero) k1 = Gather <axis = 0> (i3, one)
        v = Gather <axis = 0> (i3, two) k = Transpose <perm = [0, 1, 3, 2]> (k1)
        {SCORES} p = Softmax (s1) v2 = MatMul (p, v) {OUT}"""
    return block(attention, FUSED, five=[0, T, 3, HEADS, D], zero=0, one=1, two=2, **BOTH)


def with_bias_and_mask() -> onnx.ModelProto:
    """A relative position bias [1, heads, T, T] and a causal mask [T, T]."""
    attention = f"{THREE} {SCORES} s2 = Add (s1, bias) s3 = Add (s2, mask) p = Softmax (s3) v2 = MatMul (p, v) {OUT}"
    causal = np.triu(np.full((T, T), -100, np.float32), 1)
    return block(attention, f"{WEIGHTS}, float[1, {HEADS}, {T}, {T}] bias", mask=causal, **BOTH)


def normalised_queries() -> onnx.ModelProto:
    """LayerNormalization of queries and keys over the width of each head."""
    attention = f"""q0 = MatMul (n, wq) q1 = Reshape (q0, split) qn = LayerNormalization (q1, gq, hq)
        q = Transpose <perm = [0, 2, 1, 3]> (qn) k0 = MatMul (n, wk) k1 = Reshape (k0, split)
        kn = LayerNormalization (k1, gk, hk) k = Transpose <perm = [0, 2, 3, 1]> (kn)
        v0 = MatMul (n, wv) v1 = Reshape (v0, split) v = Transpose <perm = [0, 2, 1, 3]> (v1)
        {SCORES} p = Softmax (s1) v2 = MatMul (p, v) {OUT}"""
    return block(attention, f"{WEIGHTS}, float[{D}] gq, float[{D}] hq, float[{D}] gk, float[{D}] hk", **BOTH)


def multi_query() -> onnx.ModelProto:
    """All heads share one key and one value."""
    attention = f"""q0 = MatMul (n, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k0 = MatMul (n, wk) k1 = Reshape (k0, single) k = Transpose <perm = [0, 2, 3, 1]> (k1)
        v0 = MatMul (n, wv) v1 = Reshape (v0, single) v = Transpose <perm = [0, 2, 1, 3]> (v1)
        {SCORES} p = Softmax (s1) v2 = MatMul (p, v) {OUT}"""
    constants = f"float[{C}, {C}] wq, float[{C}, {D}] wk, float[{C}, {D}] wv, float[{C}, {C}] wo, float by = {{0.4}}"
    return block(attention, constants, single=[0, T, 1, D], **BOTH)


def grouped_query() -> onnx.ModelProto:
    """Two heads of keys and values for four of queries, repeated by Unsqueeze, Expand and Reshape."""
    attention = f"""q0 = MatMul (n, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k0 = MatMul (n, wk) k1 = Reshape (k0, pair) k2 = Transpose <perm = [0, 2, 1, 3]> (k1) k3 = Unsqueeze (k2, ax)
        k4 = Expand (k3, twice) k5 = Reshape (k4, four) k = Transpose <perm = [0, 1, 3, 2]> (k5)
        v0 = MatMul (n, wv) v1 = Reshape (v0, pair) v4 = Transpose <perm = [0, 2, 1, 3]> (v1) v5 = Unsqueeze (v4, ax)
        v6 = Expand (v5, twice) v = Reshape (v6, four)
        {SCORES} p = Softmax (s1) v2 = MatMul (p, v) {OUT}"""
    constants = (
        f"float[{C}, {C}] wq, float[{C}, {2 * D}] wk, float[{C}, {2 * D}] wv, float[{C}, {C}] wo, float by = {{0.4}}"
    )
    return block(attention, constants, pair=[0, T, 2, D], ax=[2], twice=[1, 2, 2, T, D], four=[0, HEADS, T, D], **BOTH)


def single_head() -> onnx.ModelProto:
    attention = """q = MatMul (n, wq) k0 = MatMul (n, wk) k = Transpose <perm = [0, 2, 1]> (k0) v = MatMul (n, wv)
        s = MatMul (q, k) s1 = Mul (s, by) p = Softmax (s1) z = MatMul (p, v) o = MatMul (z, wo)"""
    return block(attention, WEIGHTS)


def by_einsum() -> onnx.ModelProto:
    """Projections by Einsum with constant weights [C, heads, D], scores and values too."""
    attention = """q = Einsum <equation = "btc,chd->bhtd"> (n, wq) k = Einsum <equation = "btc,chd->bhtd"> (n, wk)
        v = Einsum <equation = "btc,chd->bhtd"> (n, wv) s = Einsum <equation = "bhqd,bhkd->bhqk"> (q, k)
        s1 = Mul (s, by) p = Softmax (s1) z = Einsum <equation = "bhqk,bhkd->bqhd"> (p, v)
        o = Einsum <equation = "bqhd,hdc->bqc"> (z, wo)"""
    shape = f"float[{C}, {HEADS}, {D}]"
    constants = f"{shape} wq, {shape} wk, {shape} wv, float[{HEADS}, {D}, {C}] wo, float by = {{0.4}}"
    return block(attention, constants)


def computed_targets() -> onnx.ModelProto:
    """Free batch and length: the targets of all Reshapes are computed from Shape, the width of a head by division."""
    return network(
        "(float[N, T, 8] x) => (float[n, t, 5] y)",
        f"""float[8, {C}] we, {FUSED}, float[{C}, 48] wu, float[48, {C}] wd, float[{C}, 5] wy, float[{C}] g1,
        float[{C}] h1, int64 k0 = {{0}}, int64 k1 = {{1}}, int64 k2 = {{2}}, int64 k3 = {{3}}, int64 k4 = {{{HEADS}}},
        int64[1] ax = {{0}}, int64[1] three = {{3}}, int64[1] four = {{{HEADS}}}, int64[3] ones = {{1, 1, 1}}""",
        """e = MatMul (x, we) n = LayerNormalization (e, g1, h1) i0 = MatMul (n, wi) i1 = Add (i0, bi) s0 = Shape (i1)
        n0 = Gather (s0, k0) t0 = Gather (s0, k1) c0 = Gather (s0, k2) c1 = Div (c0, k3) d0 = Div (c1, k4)
        nn = Unsqueeze (n0, ax) tt = Unsqueeze (t0, ax) dd = Unsqueeze (d0, ax)
        five = Concat <axis = 0> (nn, tt, three, four, dd) i2 = Reshape (i1, five)
        i3 = Transpose <perm = [2, 0, 3, 1, 4]> (i2) q0, k5, v0 = Split <axis = 0> (i3, ones)
        q = Squeeze (q0, ax) k6 = Squeeze (k5, ax) v = Squeeze (v0, ax) k = Transpose <perm = [0, 1, 3, 2]> (k6)
        s = MatMul (q, k) s1 = Mul (s, by) p = Softmax (s1) v2 = MatMul (p, v) z = Transpose <perm = [0, 2, 1, 3]> (v2)
        w0 = Mul (d0, k4) ww = Unsqueeze (w0, ax) three3 = Concat <axis = 0> (nn, tt, ww) z1 = Reshape (z, three3)
        o = MatMul (z1, wo) r = Add (o, e) u0 = MatMul (r, wu) u = Relu (u0) d = MatMul (u, wd) f = Add (d, r)
        y = MatMul (f, wy)""",
    )


STREAM = {"it takes mean and variance over the channels": advice.PRUNE_BESIDE_STREAM}
SHARED = {"all heads share it": advice.NO_EXACT_FORM}
OVER = {"it multiplies two computed tensors over their channels": advice.NO_EXACT_FORM}
ANY = [{"N": 1}, {"N": 3}]
BY_HEADS = {
    "separate": separate,
    "fused, split": fused_by_split,
    "fused, gather": fused_by_gather,
    "bias and mask": with_bias_and_mask,
    "normalised queries and keys": normalised_queries,
    "grouped query": grouped_query,
    "einsum": by_einsum,
}


@pytest.mark.parametrize("name", BY_HEADS)
def test_heads_are_removed_as_a_whole_and_the_stream_stays(name: str, tmp_path: Path) -> None:
    """Channels of the normalised stream that are read stay; heads and hidden units become fewer."""
    done = checked(BY_HEADS[name](), tmp_path, ANY, keep=0.6)
    assert_pins(done, STREAM)
    assert done.shapes["we"] == [8, C]
    assert done.shapes["wu"][1] == done.shapes["wd"][0] < 96
    width = done.shapes["wi"][1] // 3 if "wi" in done.shapes else np.prod(done.shapes["wq"][1:])
    assert width == np.prod(done.shapes["wo"][:-1])
    assert width % D == 0
    assert width < C


def test_heads_of_four_queries_to_a_key(tmp_path: Path) -> None:
    """Two query heads are removed with their shared key and value head."""
    done = checked(grouped_query(), tmp_path, ANY, keep=0.6)
    assert [done.shapes[name] for name in ("wq", "wk", "wv", "wo")] == [[C, 12], [C, 6], [C, 6], [12, C]]


def test_bias_of_positions_is_sliced_with_its_head(tmp_path: Path) -> None:
    done = checked(with_bias_and_mask(), tmp_path, ANY, keep=0.6)
    assert done.shapes["bias"] == [1, done.shapes["wq"][1] // D, T, T]
    assert done.shapes["mask"] == [T, T]


def test_without_normalisation_the_stream_shrinks_too(tmp_path: Path) -> None:
    done = checked(separate(norm=False), tmp_path, ANY, keep=0.6)
    assert_pins(done, {})
    assert done.shapes["we"][1] == done.shapes["wq"][0] == done.shapes["wd"][1] < C


def test_keys_shared_by_all_heads_stay(tmp_path: Path) -> None:
    done = checked(multi_query(), tmp_path, ANY, keep=0.6)
    assert_pins(done, STREAM | SHARED)
    assert (done.shapes["wk"], done.shapes["wv"]) == ([C, D], [C, D])
    assert done.shapes["wq"][1] < C


def test_single_head_loses_width_of_its_values_alone(tmp_path: Path) -> None:
    done = checked(single_head(), tmp_path, ANY, keep=0.6)
    assert_pins(done, STREAM | OVER)
    assert (done.shapes["wq"], done.shapes["wk"]) == ([C, C], [C, C])
    assert done.shapes["wv"][1] == done.shapes["wo"][0] < C


def test_free_batch_and_length(tmp_path: Path) -> None:
    done = checked(computed_targets(), tmp_path, [{"N": 1, "T": 4}, {"N": 3, "T": 7}], keep=0.7)
    assert_pins(done, STREAM)
    assert done.shapes["wi"][1] < 3 * C

"""One weight read in several places: pruned once, the same for all, and kept once in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.variants import assert_pins, checked, given, network

TOWER = """a{k} = Conv <pads = [1, 1, 1, 1]> (x{k}, w1{k}, b1) r{k} = Relu (a{k})
    c{k} = Conv <pads = [1, 1, 1, 1]> (r{k}, w2{k}) e{k} = Relu (c{k}) p{k} = GlobalAveragePool (e{k})
    f{k} = Flatten (p{k}) v{k} = Gemm <transB = 1> (f{k}, w3)"""


def siamese(by_identity: bool) -> onnx.ModelProto:
    """Two towers whose difference is classified; the second reads the same weights, directly or by Identity."""
    names = "w11 = Identity (w10) w21 = Identity (w20)" if by_identity else ""
    towers = "".join(TOWER.format(k=k) for k in range(2))
    towers = towers if by_identity else towers.replace("w11", "w10").replace("w21", "w20")
    return network(
        "(float[N, 3, H, W] x0, float[N, 3, H, W] x1) => (float[N, 2] y)",
        "float[16, 3, 3, 3] w10, float[16] b1, float[24, 16, 3, 3] w20, float[12, 24] w3, float[2, 12] w4",
        f"{names} {towers} d0 = Sub (v0, v1) d = Abs (d0) y = Gemm <transB = 1> (d, w4)",
    )


def pyramid() -> onnx.ModelProto:
    """Three levels with their own lateral layers and one shared head of two outputs."""
    head = """h{k} = Conv <pads = [1, 1, 1, 1]> (m{k}, wh, bh) g{k} = Relu (h{k}) y{k} = Conv (g{k}, wc)
        z{k} = Conv (g{k}, wb)"""
    return network(
        "(float[N, 3, H, W] x) => (float[N, 4, h, w] y0, float[N, 8, h, w] z0, float[N, 4, h, w] y1,"
        " float[N, 8, h, w] z1, float[N, 4, h, w] y2, float[N, 8, h, w] z2)",
        """float[8, 3, 3, 3] w1, float[12, 8, 3, 3] w2, float[16, 12, 3, 3] w3, float[16, 8, 1, 1] l0,
        float[16, 12, 1, 1] l1, float[16, 16, 1, 1] l2, float[16, 16, 3, 3] wh, float[16] bh, float[4, 16, 1, 1] wc,
        float[8, 16, 1, 1] wb,
        float[4] twice = {1.0, 1.0, 2.0, 2.0}""",
        """c0 = Conv <pads = [1, 1, 1, 1]> (x, w1) r0 = Relu (c0)
        c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r0, w2) r1 = Relu (c1)
        c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w3) r2 = Relu (c2)
        m2 = Conv (r2, l2) u2 = Resize (m2, , twice) t1 = Conv (r1, l1) m1 = Add (t1, u2)
        u1 = Resize (m1, , twice) t0 = Conv (r0, l0) m0 = Add (t0, u1)"""
        + "".join(head.format(k=k) for k in range(3)),
    )


def unrolled(steps: int = 5) -> onnx.ModelProto:
    """x_{k+1} = x_k + CNN(x_k, Aᵀ(A x_k - d)), one CNN for all steps; A is a fixed blur."""
    step = """p{k} = Conv <pads = [1, 1, 1, 1]> (x{k}, blur) q{k} = Sub (p{k}, d)
        g{k} = ConvTranspose <pads = [1, 1, 1, 1]> (q{k}, blur) j{k} = Concat <axis = 1> (x{k}, g{k})
        a{k} = Conv <pads = [1, 1, 1, 1]> (j{k}, w1, b1) r{k} = Relu (a{k})
        c{k} = Conv <pads = [1, 1, 1, 1]> (r{k}, w2, b2) e{k} = Relu (c{k})
        n{k} = Conv <pads = [1, 1, 1, 1]> (e{k}, w3) x{n} = Add (x{k}, n{k})"""
    body = "".join(step.format(k=k, n=k + 1) for k in range(steps))
    proto = network(
        "(float[N, 1, H, W] d) => (float[N, 1, h, w] y)",
        """float[16, 2, 3, 3] w1, float[16] b1, float[16, 16, 3, 3] w2, float[16] b2, float[1, 16, 3, 3] w3,
        float[1, 1, 3, 3] blur""",
        f"x0 = Identity (d) {body} y = Identity (x{steps})",
    )
    return given(proto, blur=np.full((1, 1, 3, 3), 1 / 9, np.float32))


SIZES = [{"N": 1, "H": 8, "W": 8}, {"N": 2, "H": 16, "W": 12}]
CASES = {
    "siamese": (lambda: siamese(False), 2),
    "siamese by identity": (lambda: siamese(True), 2),
    "pyramid": (pyramid, 3),
    "unrolled": (unrolled, 5),
}
"""Each network, and how many times it reads its shared weights."""


@pytest.mark.parametrize("name", CASES)
def test_shared_weights(name: str, tmp_path: Path) -> None:
    make, times = CASES[name]
    done = checked(make(), tmp_path, SIZES)
    assert_pins(done, {})
    assert readers(done.target) == readers(done.source)
    assert times in readers(done.source).values()
    assert all(size <= kernel_sizes(done.source)[key] for key, size in kernel_sizes(done.target).items())


def readers(proto: onnx.ModelProto) -> dict[str, int]:
    """Number of nodes that read each weight, directly or through Identity."""
    names = [t.name for t in proto.graph.initializer if len(t.dims) > 1]
    same = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Identity"}
    read = [same.get(name, name) for node in proto.graph.node if node.op_type != "Identity" for name in node.input]
    assert len(set(names)) == len(names)
    return {name: read.count(name) for name in sorted(names)}


def kernel_sizes(proto: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.dims[0] * t.dims[1] for t in proto.graph.initializer if len(t.dims) > 1}


def test_one_weight_in_both_directions(tmp_path: Path) -> None:
    """A pair of tied layers (an autoencoder): the decoder reads the encoder's weight transposed."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)",
        "float[16, 3, 3, 3] w1, float[24, 16, 1, 1] w2, float[16] b1, float[16] b3",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (a) b = Conv (r, w2) s = Relu (b)
        c = ConvTranspose (s, w2, b3) t = Relu (c) y = ConvTranspose <pads = [1, 1, 1, 1]> (t, w1)""",
    )
    done = checked(proto, tmp_path, [{"N": 2}])
    assert_pins(done, {})
    out, width = done.shapes["w1"][0], done.shapes["w2"][0]
    assert done.shapes == {"w1": [out, 3, 3, 3], "w2": [width, out, 1, 1], "b1": [out], "b3": [out]}


def test_vector_with_a_different_slice_for_each_reader(tmp_path: Path) -> None:
    """The plan has all slices, and the whole vector for a reader that keeps it."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 12, 8, 8] y)",
        "float[12, 3, 3, 3] w1, float[12, 12, 1, 1] w2, float[12, 12, 1, 1] w3, float[12] b",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b) r = Relu (a) c = Conv (r, w2, b) s = Relu (c)
        y = Conv (s, w3, b)""",
    )
    done = checked(proto, tmp_path, [{"N": 2}], keep=0.6)
    entry, width = done.tensors["b"], {name: done.tensors[name]["kept"][0] for name in ("w1", "w2", "w3")}
    assert width["w1"] != width["w2"]
    assert [entry["kept"], *entry["others"]] == [[width["w1"]], [width["w2"]], [None]]
    assert "others" not in done.tensors["w2"]


def test_steps_of_an_unrolled_network_are_counted_each(tmp_path: Path) -> None:
    """The report counts what runs: one layer of each step, whose channels are the same throughout."""
    done = checked(unrolled(), tmp_path, SIZES)
    assert done.result.before.kernels == 5 * (2 * 16 + 16 * 16 + 16 + 2)
    assert done.result.before.params == sum(int(np.prod(t.dims)) for t in done.source.graph.initializer)

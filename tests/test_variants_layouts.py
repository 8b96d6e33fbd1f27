"""Layouts that exporters write: channels last, one and three spatial axes, several inputs and outputs, free sizes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from leanonnx.errors import BudgetUnreachable
from leanonnx.rules import advice
from tests.variants import assert_pins, checked, network

SIZES = [{"N": 1, "H": 8, "W": 8}, {"N": 3, "H": 12, "W": 20}]
LAST = "perm = [0, 2, 3, 1]"
FIRST = "perm = [0, 3, 1, 2]"


def channels_last() -> onnx.ModelProto:
    """[N, H, W, C] throughout, with a Transpose before and after each convolution."""
    return network(
        "(float[1, 8, 8, 3] x) => (float[1, 8, 8, 4] y)",
        "float[12, 3, 3, 3] w1, float[12] b1, float[16, 12, 3, 3] w2, float[16] b2, float[4, 16, 1, 1] w3, float[12] s",
        f"""a0 = Transpose <{FIRST}> (x) a1 = Conv <pads = [1, 1, 1, 1]> (a0, w1) a2 = Transpose <{LAST}> (a1)
        a3 = Add (a2, b1) a4 = Relu (a3) a5 = Mul (a4, s)
        c0 = Transpose <{FIRST}> (a5) c1 = Conv <pads = [1, 1, 1, 1]> (c0, w2) c2 = Transpose <{LAST}> (c1)
        c3 = Add (c2, b2) c4 = Relu (c3)
        d0 = Transpose <{FIRST}> (c4) d1 = Conv (d0, w3) y = Transpose <{LAST}> (d1)""",
    )


def signal() -> onnx.ModelProto:
    """A WaveNet-like stack in one dimension, gated."""
    return network(
        "(float[N, 1, T] x) => (float[N, 1, t] y)",
        """float[16, 1, 3] w1, float[16] b1, float[16, 16, 3] wf, float[16, 16, 3] wg, float[16, 16, 1] wr,
        float[8, 16, 1] w3, float[1, 8, 1] w4""",
        """a = Conv <pads = [1, 1]> (x, w1, b1) f = Conv <dilations = [2], pads = [2, 2]> (a, wf)
        g = Conv <dilations = [2], pads = [2, 2]> (a, wg) ft = Tanh (f) gs = Sigmoid (g) m = Mul (ft, gs)
        r = Conv (m, wr) s = Add (r, a) p = AveragePool <kernel_shape = [2], strides = [2]> (s)
        h = Conv (p, w3) hr = Relu (h) y = Conv (hr, w4)""",
    )


def volume() -> onnx.ModelProto:
    """A small 3-D segmentation network with a transposed convolution."""
    return network(
        "(float[N, 1, 8, 8, 8] x) => (float[N, 2, 8, 8, 8] y)",
        """float[8, 1, 3, 3, 3] w1, float[8] s1, float[8] o1, float[16, 8, 3, 3, 3] w2, float[16, 8, 2, 2, 2] w3,
        float[2, 16, 1, 1, 1] w4""",
        """a = Conv <pads = [1, 1, 1, 1, 1, 1]> (x, w1) n = InstanceNormalization (a, s1, o1) r = LeakyRelu (n)
        d = Conv <pads = [1, 1, 1, 1, 1, 1], strides = [2, 2, 2]> (r, w2) e = Relu (d)
        u = ConvTranspose <strides = [2, 2, 2]> (e, w3) c = Concat <axis = 1> (u, r) y = Conv (c, w4)""",
    )


def free_sizes() -> onnx.ModelProto:
    """A U-Net with free batch, height and width that upsamples to a size computed by Shape."""
    return network(
        "(float[N, 3, H, W] x) => (float[N, 2, h, w] y)",
        """float[8, 3, 3, 3] w1, float[16, 8, 3, 3] w2, float[8, 16, 3, 3] w3, float[8, 16, 3, 3] w4,
        float[2, 8, 1, 1] w5, int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] eight = {8}""",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1) ar = Relu (a)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (ar)
        b = Conv <pads = [1, 1, 1, 1]> (p, w2) br = Relu (b) c = Conv <pads = [1, 1, 1, 1]> (br, w3) cr = Relu (c)
        s = Shape (ar) size = Slice (s, two, four, zero) s2 = Shape (cr) lead = Slice (s2, zero, two, zero)
        target = Concat <axis = 0> (lead, size) u = Resize <mode = "nearest"> (cr, , , target)
        j = Concat <axis = 1> (u, ar) d = Conv <pads = [1, 1, 1, 1]> (j, w4) dr = Relu (d) y = Conv (dr, w5)""",
    )


def computed_targets() -> onnx.ModelProto:
    """Reshape targets from Shape, Gather, Unsqueeze and Concat, over the channels too (a channel shuffle, a head)."""
    return network(
        "(float[N, 3, H, W] x) => (float[N, 5] y)",
        """float[12, 3, 3, 3] w1, float[12] b1, float[16, 12, 3, 3] w2, float[5, 16] w3, int64 i0 = {0},
        int64 i1 = {1}, int64 i2 = {2}, int64 i3 = {3}, int64[1] ax = {0}, int64[1] groups = {3}, int64 g = {3},
        int64[1] rest = {-1}""",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (a) s = Shape (r)
        n0 = Gather <axis = 0> (s, i0) c0 = Gather <axis = 0> (s, i1) h0 = Gather <axis = 0> (s, i2)
        v0 = Gather <axis = 0> (s, i3) n = Unsqueeze (n0, ax) c = Unsqueeze (c0, ax) h = Unsqueeze (h0, ax)
        v = Unsqueeze (v0, ax) each0 = Div (c0, g) each = Unsqueeze (each0, ax)
        t1 = Concat <axis = 0> (n, groups, each, h, v) k1 = Reshape (r, t1)
        k2 = Transpose <perm = [0, 2, 1, 3, 4]> (k1) t2 = Concat <axis = 0> (n, c, h, v) k3 = Reshape (k2, t2)
        d = Conv <pads = [1, 1, 1, 1]> (k3, w2) e = Relu (d) t3 = Concat <axis = 0> (n, c2, rest) f = Reshape (e, t3)
        s2 = Shape (e) c20 = Gather <axis = 0> (s2, i1) c2 = Unsqueeze (c20, ax)
        m = ReduceMean <axes = [2], keepdims = 0> (f) y = Gemm <transB = 1> (m, w3)""",
    )


def sorted_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its nodes in topological order."""
    known = {v.name for v in (*proto.graph.input, *proto.graph.initializer)} | {""}
    rest, done = list(proto.graph.node), []
    while rest:
        node = next(n for n in rest if known.issuperset(n.input))
        rest.remove(node)
        done.append(node)
        known.update(node.output)
    del proto.graph.node[:]
    proto.graph.node.extend(done)
    return proto


def several() -> onnx.ModelProto:
    """Two images as inputs; an image, a vector and a class as outputs."""
    return network(
        "(float[1, 3, 8, 8] x, float[1, 1, 8, 8] z) => (float[1, 4, 8, 8] y, float[1, 6] v, int64[1, 1] k)",
        """float[8, 3, 3, 3] w1, float[8, 1, 3, 3] w2, float[12, 16, 3, 3] w3, float[4, 12, 1, 1] w4, float[24, 12] w5,
        float[6, 24] w6""",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1) ar = Relu (a) b = Conv <pads = [1, 1, 1, 1]> (z, w2) br = Relu (b)
        c = Concat <axis = 1> (ar, br) d = Conv <pads = [1, 1, 1, 1]> (c, w3) e = Relu (d) y = Conv (e, w4)
        p = GlobalAveragePool (e) f = Flatten (p) h = Gemm <transB = 1> (f, w5) hr = Relu (h)
        v = Gemm <transB = 1> (hr, w6) k = ArgMax <axis = 1> (v)""",
    )


def grouped(groups: int, width: int) -> onnx.ModelProto:
    """A ResNeXt block of some groups."""
    return network(
        "(float[N, 3, H, W] x) => (float[N, 4, h, w] y)",
        f"""float[{width}, 3, 3, 3] w1, float[{width}] b1, float[{width}, {width // groups}, 3, 3] w2,
        float[{width}] b2, float[{width}, {width}, 1, 1] w3, float[4, {width}, 1, 1] w4""",
        f"""a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) ar = Relu (a)
        g = Conv <pads = [1, 1, 1, 1], group = {groups}> (ar, w2, b2) gr = Relu (g) c = Conv (gr, w3)
        s = Add (c, ar) sr = Relu (s) y = Conv (sr, w4)""",
    )


def shuffled(pointwise: int = 4) -> onnx.ModelProto:
    """ShuffleNet units of 32 channels: 1×1 in some groups, channel shuffle by 4, depthwise 3×3, 1×1."""
    unit = """
        a{k} = Conv <group = {g}> (x{k}, wa{k}) b{k} = Relu (a{k}) r{k} = Reshape (b{k}, split)
        t{k} = Transpose <perm = [0, 2, 1, 3, 4]> (r{k}) s{k} = Reshape (t{k}, whole)
        d{k} = Conv <pads = [1, 1, 1, 1], group = 32> (s{k}, wd{k}) e{k} = Conv <group = {g}> (d{k}, we{k})
        x{n} = Add (e{k}, x{k})"""
    weights = "float[32, {w}, 1, 1] wa{k}, float[32, 1, 3, 3] wd{k}, float[32, {w}, 1, 1] we{k}"
    constants = ", ".join(weights.format(k=k, w=32 // pointwise) for k in range(2))
    return network(
        "(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)",
        f"""float[32, 3, 3, 3] w1, float[4, 32, 1, 1] w2, {constants}, int64[5] split = {{0, 4, 8, 8, 8}},
        int64[4] whole = {{0, 32, 8, 8}}""",
        "x0 = Conv <pads = [1, 1, 1, 1]> (x, w1)"
        + "".join(unit.format(k=k, n=k + 1, g=pointwise) for k in range(2))
        + "y = Conv (x2, w2)",
    )


LAYOUTS = {
    "channels last": (channels_last, [{}]),
    "signal": (signal, [{"T": 8}, {"N": 2, "T": 64}, {"N": 5, "T": 22}]),
    "volume": (volume, [{}, {"N": 3}]),
    "free sizes": (free_sizes, SIZES),
    "computed targets": (lambda: sorted_nodes(computed_targets()), SIZES),
    "two groups": (lambda: grouped(2, 16), SIZES),
    "many groups": (lambda: grouped(16, 64), SIZES),
    "groups of one": (lambda: grouped(16, 16), SIZES),
    "channel shuffle, few groups": (shuffled, [{"N": 1}, {"N": 4}]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_pinned_within(name: str, tmp_path: Path) -> None:
    make, sizes = LAYOUTS[name]
    assert_pins(checked(make(), tmp_path, sizes), {})


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    done = checked(several(), tmp_path)
    assert_pins(done, {"it reduces over the channels": advice.NO_EXACT_FORM})
    assert len(done.result.proof.outputs) >= 3


def test_two_groups_stay_two(tmp_path: Path) -> None:
    """A few conv groups lose the same positions; their number stays."""
    done = checked(grouped(2, 16), tmp_path, SIZES)
    out, width, *_ = done.shapes["w2"]
    assert (out % 2, groups_of(done.target)) == (0, 2)
    assert width < 8


def test_many_groups_are_removed_as_a_whole(tmp_path: Path) -> None:
    done = checked(grouped(16, 64), tmp_path, SIZES)
    out, width, *_ = done.shapes["w2"]
    assert (out, width) == (4 * groups_of(done.target), 4)
    assert groups_of(done.target) < 16


def groups_of(proto: onnx.ModelProto) -> int:
    """Groups of the only grouped convolution."""
    return next(a.i for node in proto.graph.node for a in node.attribute if a.name == "group")


def test_shuffle_becomes_one_gather(tmp_path: Path) -> None:
    """Channels are removed one by one, so that the rest of a shuffle is no rectangle."""
    done = checked(shuffled(1), tmp_path, [{"N": 2}])
    assert "Gather" in {node.op_type for node in done.target.graph.node}


def test_shuffled_whole_groups_name_their_tie(tmp_path: Path) -> None:
    """Whole conv groups before and after a shuffle share channels until all form one group."""
    with pytest.raises(
        BudgetUnreachable, match=r"32 of the 32 channels .* can only be removed together .whole groups of Conv"
    ):
        checked(shuffled(16), tmp_path)

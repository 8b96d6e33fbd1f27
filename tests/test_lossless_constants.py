"""``--exact`` stores computed operands that are constant whatever the input, and moves them into biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.analysis import constant_channels as steady
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ProofFailed
from leanonnx.selection.metrics import Budget
from tests.helpers import Options, build, saved
from tests.soft_pruned import LARGE, edited, framed, minimal, put, residual, sizes, soft_pruned

FREE = {"batch": "N", "size": "S"}
NOTHING = put(0, slice(None))


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def stored(proto: onnx.ModelProto, *shape: int) -> np.ndarray:
    """The only constant of a shape."""
    (tensor,) = (t for t in proto.graph.initializer if list(t.dims) == list(shape))
    return np.asarray(onnx.numpy_helper.to_array(tensor))


@pytest.mark.parametrize("where", [LARGE, FREE], ids=["fixed", "free"])
def test_a_constant_branch_becomes_a_constant(where: Mapping[str, object], tmp_path: Path) -> None:
    """The weights of its last layer are zero, the bias is not; the rectifier before the sum keeps it from a bias."""
    proto = edited(residual(where), r=NOTHING, rb=put(range(1, 9), slice(None)))
    result, after = minimal(proto, tmp_path)
    assert operators(after) == ["Conv", "Relu", "Add", "Relu", "Conv"]
    assert stored(after, 1, 8, 1, 1).reshape(-1).tolist() == list(range(1, 9))
    assert result.tidied == {"constant": 1, "unread": 5}
    assert result.exact is not None and result.exact["layers"] == ["E", "G", "A"]


BLOCK = """
<ir_version: 8, opset_import: ["" : 17]>
block (float[{batch}, 2, {size}, {size}] x) => (float[n, 3, h, w] y)
<float[8, 2, 3, 3] w, float[8] b, float[4, 8, 1, 1] p, float[4, 4, 3, 3] q, float[8, 4, 3, 3] r, float[8] rb,
 float[8] g, float[8] s, float[8] m, float[8] v1 = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[12, 8, 1, 1] e1,
 float[8, 12, 1, 1] e2, float[3, 8, 3, 3] v, float[3] vb>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    {before}
    e = Conv (i, p)
    f = Relu (e)
    k = Conv <pads = [1, 1, 1, 1]> (f, q)
    h = Relu (k)
    {branch}
    t = Add (i, a)
    {behind}
    y = Conv (u, v, vb)
}}
"""
PLAIN = "a = Conv <pads = [1, 1, 1, 1]> (h, r, rb)"
NORMALISED = "a0 = Conv <pads = [1, 1, 1, 1]> (h, r) a = BatchNormalization (a0, g, s, m, v1)"
IDENTITY, RECTIFIED = "i = Identity (c)", "i = Relu (c)"
LINEAR_END, RELU_END = "u = Identity (t)", "u = Relu (t)"
TWO_BLOCKS = "j = Conv (c, e1) l = Relu (j) o = Conv (l, e2) i = Add (c, o)"


def block(
    before: str, branch: str = PLAIN, behind: str = RELU_END, where: Mapping[str, object] = LARGE
) -> onnx.ModelProto:
    return build(BLOCK.format(before=before, branch=branch, behind=behind, **where))


@pytest.mark.parametrize("where", [LARGE, FREE], ids=["fixed", "free"])
@pytest.mark.parametrize(
    ("proto", "zeros", "left"),
    [
        (block(IDENTITY), "r", ["Conv", "Relu", "Conv"]),
        (block(RECTIFIED), "r", ["Conv", "Relu", "Add", "Relu", "Conv"]),
        (block(RECTIFIED, behind=LINEAR_END), "r", ["Conv", "Relu", "Conv"]),
        (block(IDENTITY, NORMALISED), "r", ["Conv", "Relu", "Conv"]),
        (block(IDENTITY, NORMALISED), "g", ["Conv", "Relu", "Conv"]),
        (block(RECTIFIED, NORMALISED), "g", ["Conv", "Relu", "Add", "Relu", "Conv"]),
        (block(TWO_BLOCKS), "r", ["Conv", "Conv", "Relu", "Conv", "Add", "Relu", "Conv"]),
    ],
    ids=["before", "stays", "behind", "zeros before BN", "zero BN", "BN stays", "through a sum"],
)
def test_a_constant_goes_into_a_bias_where_one_is_linear(
    proto: onnx.ModelProto, zeros: str, left: list[str], where: Mapping[str, object], tmp_path: Path
) -> None:
    """A layer before it, also through a sum, or a layer behind it without a border."""
    text = onnx.ModelProto()
    text.CopyFrom(proto)
    if where is FREE:
        for axis, name in ((0, "N"), (2, "S"), (3, "S")):
            text.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    result, after = minimal(edited(text, **{zeros: NOTHING}), tmp_path)
    assert operators(after) == left
    assert {"p", "q", "r"}.isdisjoint(sizes(after))
    assert result.tidied["constant"] == 1
    assert result.proof.sizes == (1 if where is LARGE else result.proof.sizes)


def test_without_bias_the_branch_adds_nothing(tmp_path: Path) -> None:
    proto = edited(block(RECTIFIED), r=NOTHING, rb=NOTHING)
    result, after = minimal(proto, tmp_path)
    assert operators(after) == ["Conv", "Relu", "Relu", "Conv"]
    assert "constant" not in result.tidied


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Conv (c, u, ub) s = Sigmoid (c) t = Mul (s, a) d = Relu (t)", ["Conv", "Sigmoid", "Mul", "Relu", "Conv"]),
        ("a = Conv (c, u, ub) s = Sigmoid (c) t = Sub (a, s) d = Relu (t)", ["Conv", "Sigmoid", "Sub", "Relu", "Conv"]),
        ("a = Conv (c, u, ub) t = Sub (c, a) d = Relu (t)", ["Conv", "Relu", "Conv"]),
        ("a = Conv (c, u, ub) t = Mul (a, c) d = Relu (t)", ["Conv", "Relu", "Conv"]),
        (
            "p = GlobalAveragePool (c) a = Conv (p, u, ub) e = Sigmoid (a) t = Mul (c, e) d = Relu (t)",
            ["Conv", "Relu", "Conv"],
        ),
        ("a = Conv (c, u, ub) t = Div (c, a) d = Relu (t)", ["Conv", "Relu", "Conv"]),
    ],
)
def test_all_arithmetic(body: str, left: list[str], tmp_path: Path) -> None:
    proto = edited(framed(body, "float[8, 8, 1, 1] u, float[8] ub"), u=NOTHING)
    _, after = minimal(proto, tmp_path)
    assert operators(after) == left


@pytest.mark.parametrize(
    ("layer", "constants", "goes"),
    [
        ("Conv (d, v2, b2)", "float[3, 8, 3, 3] v2, float[3] b2", True),
        ("Conv (d, v2)", "float[3, 8, 3, 3] v2", True),
        ("Conv <group = 2> (d, v2)", "float[4, 4, 3, 3] v2", True),
        ("Conv <pads = [1, 0, 0, 0]> (d, v2)", "float[3, 8, 3, 3] v2", False),
        ("ConvTranspose (d, v2)", "float[8, 3, 3, 3] v2", False),
        ("MaxPool <kernel_shape = [2, 2]> (d)", "float z", False),
    ],
)
def test_a_layer_behind_takes_it_if_it_has_no_border(layer: str, constants: str, goes: bool, tmp_path: Path) -> None:
    proto = build(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        behind (float[1, 2, 6, 6] x) => (float[1, k, n, m] y)
        <float[8, 2, 3, 3] w, float[8, 8, 1, 1] u, float[8] ub, {constants}>
        {{ c = Conv (x, w) s = Sigmoid (c) a = Conv (s, u, ub) d = Add (s, a) y = {layer} }}""")
    _, after = minimal(edited(proto, u=NOTHING), tmp_path)
    assert ("Add" in operators(after)) != goes
    assert "u" not in sizes(after)


def test_a_constant_that_enlarges_what_it_is_added_to_stays(tmp_path: Path) -> None:
    proto = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        enlarged (float[1, 2, 6, 6] x) => (float[1, 3, 4, 4] y)
        <float[1, 2, 1, 1] w, float[1, 8, 1, 1] k, float[3, 8, 3, 3] v>
        { c = Conv (x, w) s = Sigmoid (c) d = Add (s, k) y = Conv (d, v) }""")
    _, after = minimal(proto, tmp_path)
    assert operators(after) == ["Conv", "Sigmoid", "Add", "Conv"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_dense_layer_behind_takes_it(transposed: int, tmp_path: Path) -> None:
    shape = "4, 6" if transposed else "6, 4"
    proto = build(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        dense (float[N, 5] x) => (float[N, 4] y)
        <float[5, 6] w, float[6, 6] u, float[6] ub, float[{shape}] v, float[4] vb>
        {{ c = Gemm (x, w) s = Sigmoid (c) a = Gemm (s, u, ub) d = Add (a, s)
          y = Gemm <alpha = 0.5, beta = 2.0, transB = {transposed}> (d, v, vb) }}""")
    _, after = minimal(edited(proto, u=NOTHING), tmp_path)
    assert operators(after) == ["Gemm", "Sigmoid", "Gemm"]


# What is constant only here or there


@pytest.mark.parametrize("pad", [0, 1])
def test_a_border_is_no_constant(pad: int, tmp_path: Path) -> None:
    """A constant that a layer with a border reads: what this outputs is constant in the middle only."""
    body = f"a = Conv (c, u, ub) k = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (a, o) d = Add (r, k) "
    more = "float[8, 8, 1, 1] u, float[8] ub, float[8, 8, 3, 3] o"
    r = "r = Sigmoid (c)" if pad else "r0 = Sigmoid (c) r = MaxPool <kernel_shape = [3, 3]> (r0)"
    proto = edited(framed(f"{r} {body}", more), u=NOTHING)
    _, after = minimal(proto, tmp_path)
    assert ("o" in sizes(after)) == bool(pad)


def test_a_branch_that_is_constant_at_one_size_only(tmp_path: Path) -> None:
    """It is multiplied by a number computed from the size, zero at the size that the model is observed at."""
    proto = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        sized (float[1, 2, S, S] x) => (float[1, 3, n, m] y)
        <float[8, 2, 3, 3] w, float[8] b, float[8, 8, 1, 1] u, float[3, 8, 1, 1] v, int64 two = {2},
         float here = {SIZE}>
        { c = Conv <pads = [1, 1, 1, 1]> (x, w, b) s = Sigmoid (c) shape = Shape (x) size = Gather (shape, two)
          f = Cast <to = 1> (size) z = Sub (f, here) a0 = Conv (s, u) a = Mul (a0, z) t = Add (s, a) y = Conv (t, v)
        }""".replace("SIZE", "224")
    )
    result, after = minimal(proto, tmp_path, shapes={"x": (1, 2, 224, 224)})
    assert "u" in sizes(after)
    assert "constant" not in result.tidied
    assert result.proof.sizes > 1


def test_sizes_that_only_may_agree(tmp_path: Path) -> None:
    """Without a border the branch is smaller, and broadcasts where the size allows: it has to stay."""
    proto = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        sized (float[1, 2, S, S] x, float[1, 8, T, T] z) => (float[1, 3, n, m] y)
        <float[8, 2, 1, 1] w, float[8] b, float[8, 8, 1, 1] u, float[8] ub, float[3, 8, 1, 1] v>
        { c = Conv (x, w, b) a = Conv (c, u, ub) s = Sigmoid (z) t = Add (s, a) r = Relu (t) y = Conv (r, v) }""")
    result, _ = minimal(edited(proto, u=NOTHING), tmp_path, shapes={"x": (1, 2, 6, 6), "z": (1, 8, 6, 6)})
    assert "constant" not in result.tidied


def test_an_input_that_only_the_branch_reads_stays_connected(tmp_path: Path) -> None:
    proto = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        two (float[1, 2, 6, 6] x, float[1, 2, 6, 6] z) => (float[1, 3, 6, 6] y)
        <float[8, 2, 1, 1] w, float[8, 2, 1, 1] u, float[8] ub, float[3, 8, 1, 1] v>
        { c = Conv (x, w) s = Sigmoid (c) a = Conv (z, u, ub) t = Add (s, a) r = Relu (t) y = Conv (r, v) }""")
    result, after = minimal(edited(proto, u=NOTHING), tmp_path)
    assert "u" in sizes(after)
    assert "constant" not in result.tidied


def test_a_border_taken_for_a_constant_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "a = Conv (c, u, ub) k = Conv <pads = [1, 1, 1, 1]> (a, o) r = Sigmoid (c) d = Add (r, k)"
    proto = edited(framed(body, "float[8, 8, 1, 1] u, float[8] ub, float[8, 8, 3, 3] o"), u=NOTHING)
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    compress_file(source, tmp_path / "right.onnx", Options(exact=True))
    monkeypatch.setattr(steady, "is_padded", lambda node: False)
    with pytest.raises(ProofFailed, match="differs from the original"):
        compress_file(source, target, Options(exact=True))


def test_a_budget_stores_a_constant_branch_as_well(tmp_path: Path) -> None:
    """Of the channels that are left; the sum itself stays as it is."""
    proto = edited(residual(), r=NOTHING, rb=put(range(1, 9), slice(None)))
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = compress_file(source, target, Options(Budget("kernels", 0.3)))
    after = onnx.load(target)
    assert result.proof.passed
    assert "r" not in sizes(after)
    width = sizes(after)["w"][0]
    assert width < 8
    assert stored(after, 1, width, 1, 1).size == width


def test_soft_pruned_channels_beside_a_constant_branch(tmp_path: Path) -> None:
    """The constant is cut with the channels that are not read."""
    proto = edited(residual(), r=NOTHING, rb=put(range(1, 9), slice(None)), v=put(0, slice(None), [2, 5]))
    _, after = minimal(soft_pruned(proto, 2), tmp_path)
    assert stored(after, 1, 6, 1, 1).reshape(-1).tolist() == [1, 2, 4, 5, 7, 8]

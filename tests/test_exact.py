"""``--exact``: what contributes nothing goes, nothing else does, and the output is that of the untouched original."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, event, given, note
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from leanonnx.analysis import steady
from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import analyse
from leanonnx.compressing import exact
from leanonnx.compressing.exact import contributing
from leanonnx.compressing.pipeline import Result, compress
from leanonnx.errors import ModelError, OptionError, PlanError, ProofFailed
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from leanonnx.selection.selector import Budget, Request, select
from leanonnx.surgery.operate import apply
from leanonnx.surgery.patch import masking_patch
from leanonnx.surgery.plan import load_plan
from tests.graphs import models
from tests.graphs import saved as saved_in
from tests.helpers import Options, build, called, called_json, constant_shapes, saved

Edit = Callable[[np.ndarray], None]
TIGHT = 1e-5


def edited(proto: onnx.ModelProto, **edits: Edit) -> onnx.ModelProto:
    """The model with constants changed in place."""
    for tensor in proto.graph.initializer:
        if tensor.name in edits:
            array = numpy_helper.to_array(tensor).copy()
            edits[tensor.name](array)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def put(number: float, *index: Any) -> Edit:
    """Write a number to some places: ``put(0, [1, 2])`` to rows, ``put(0, slice(None), 3)`` to a column."""

    def edit(array: np.ndarray) -> None:
        array[index] = number

    return edit


def minimal(proto: onnx.ModelProto, folder: Path, **options: Any) -> tuple[Result, onnx.ModelProto]:
    """The model written by ``--exact``, proven tightly."""
    source, target = saved(proto, folder / "in.onnx"), folder / "out.onnx"
    result = compress(source, target, Options(exact=True, **options))
    assert result.proof.passed
    assert result.proof.max_relative_error < TIGHT
    after = onnx.load(target)
    assert list(after.graph.output) == list(proto.graph.output)
    assert [v.name for v in after.graph.input] == [v.name for v in proto.graph.input]
    return result, after


def sizes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in proto.graph.initializer}


def gone(result: Result) -> tuple[int, int]:
    """Classes that went: unread, constant."""
    assert result.exact is not None
    counts = result.exact["channels"]
    return counts["unread"], counts["constant"]


FRAME = """
<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
small (float[1, 2, 6, 6] x) => (float[1, 3, n, m] y)
<float[8, 2, 3, 3] w, float[8] b, float[3, {read}, {k}, {k}] v, float[3] vb{constants}>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    {body}
    y = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (d, v, vb)
}}
"""


def framed(body: str, constants: str = "", k: int = 3, pad: int = 1, read: int = 8, opset: int = 17) -> onnx.ModelProto:
    """A convolution ``c`` of eight channels, nodes from ``c`` to ``d``, and a convolution that reads ``d``."""
    more = f", {constants}" if constants else ""
    return build(FRAME.format(body=body, constants=more, k=k, pad=pad, read=read, opset=opset))


def soft_pruned(proto: onnx.ModelProto, *channels: int, bias: float = 0.0) -> onnx.ModelProto:
    """Filters of ``c`` set to zero, with this bias."""
    return edited(proto, w=put(0, list(channels)), b=put(bias, list(channels)))


ACTIVATIONS = {
    "Relu": "d = Relu (c)",
    "LeakyRelu": "d = LeakyRelu <alpha = 0.2> (c)",
    "HardSwish": "d = HardSwish (c)",
    "Clip": "d = Clip (c, low, high)",
    "PRelu": "d = PRelu (c, slope)",
    "Swish by hand": "s = Sigmoid (c) d = Mul (c, s)",
    "MaxPool": "d = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (c)",
    "AveragePool": "d = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (c)",
    "Pad": "d = Pad (c, pads)",
    "Resize": 'd = Resize <mode = "cubic"> (c, none, scales)',
    "depthwise": "r = Relu (c) d = Conv <group = 8> (r, dw)",
    "InstanceNormalization": "d = InstanceNormalization (c, g, z)",
    "squeeze and excite": (
        "p = GlobalAveragePool (c) q = Conv (p, e1) r = Relu (q) f = Conv (r, e2) s = Sigmoid (f) d = Mul (c, s)"
    ),
    "shuffle": (
        "r = Reshape (c, fold) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) s = Reshape (t, flat) "
        "i = Transpose <perm = [0, 2, 3, 1]> (s) d = Transpose <perm = [0, 3, 1, 2]> (i)"
    ),
    "quantised and back": "q = QuantizeLinear (c, step, zp) d = DequantizeLinear (q, step, zp)",
    "FusedConv": 'd = com.microsoft.FusedConv <activation = "Relu", group = 8> (c, dw)',
}
MORE = (
    "float[8, 1, 1] slope, float low = {0}, float high = {6}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float[0] none, "
    "float[4] scales = {1, 1, 2, 2}, float[8, 1, 1, 1] dw, float[8] g, float[8] z = {0, 0, 0, 0, 0, 0, 0, 0}, "
    "float[4, 8, 1, 1] e1, float[8, 4, 1, 1] e2, int64[5] fold = {1, 2, 4, 6, 6}, int64[4] flat = {1, 8, 6, 6}, "
    "float step = {0.01}, uint8 zp = {128}"
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_zeros_are_followed_through(name: str, tmp_path: Path) -> None:
    """Filters of zeros go, whatever passes the zeros on; the border of a padded convolution is zero as well."""
    proto = soft_pruned(framed(ACTIVATIONS[name], MORE), 1, 4, 6)
    result, after = minimal(proto, tmp_path)
    assert (sizes(after)["w"][0], sizes(after)["v"][1]) == (5, 5)
    assert gone(result) == (0, 3)


def test_channels_that_only_zeros_read_go(tmp_path: Path) -> None:
    result, after = minimal(edited(framed("d = Sigmoid (c)"), v=put(0, slice(None), [0, 7])), tmp_path)
    assert sizes(after)["w"] == [6, 2, 3, 3]
    assert gone(result) == (2, 0)


def test_normalisation_of_scale_zero(tmp_path: Path) -> None:
    """Zero, a negative shift behind a rectifier, and a positive one, which the border of the next layer betrays."""
    body = "n = BatchNormalization (c, g, s, m, v1) d = Relu (n)"
    constants = "float[8] g, float[8] s, float[8] m, float[8] v1 = {1, 2, 3, 4, 5, 6, 7, 8}"

    def shifts(array: np.ndarray) -> None:
        array[:3] = 0, -1, 1

    proto = edited(framed(body, constants), g=put(0, [0, 1, 2]), s=shifts)
    assert gone(minimal(proto, tmp_path)[0]) == (0, 2)
    unpadded = edited(framed(body, constants, pad=0), g=put(0, [0, 1, 2]), s=shifts)
    assert gone(minimal(unpadded, tmp_path)[0]) == (0, 3)


@pytest.mark.parametrize("mask", ["float[1, 8, 1, 1]", "float[8, 1, 1]"])
@pytest.mark.parametrize("op", ["Mul (r, mask)", "Mul (mask, r)", "Where (kept, r, zero)"])
def test_masks(op: str, mask: str, tmp_path: Path) -> None:
    """Channels multiplied by zero go; so do the ones, once nothing else is left of the mask."""
    constants = f"{mask} mask = {{1, 0, 1, 1, 0, 1, 0, 1}}, float zero = {{0}}, bool[8, 1, 1] kept"
    proto = edited(framed(f"r = Relu (c) d = {op}", constants), kept=lambda array: np.copyto(array, True))
    if "Where" in op:
        result, after = minimal(edited(proto, kept=put(False, [1, 4, 6])), tmp_path)
        assert gone(result) == (0, 0)
        return
    result, after = minimal(proto, tmp_path)
    assert gone(result) == (0, 3)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Conv"]


# the border: a constant channel is not constant for a kernel that stands over the border


@pytest.mark.parametrize(
    ("k", "pad", "body", "folded"),
    [
        (1, 0, "d = Relu (c)", True),
        (3, 0, "d = Relu (c)", True),
        (3, 1, "d = Relu (c)", False),
        (1, 1, "d = Relu (c)", False),
        (3, 0, "d = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1> (c)", False),
        (3, 0, "d = AveragePool <kernel_shape = [2, 2]> (c)", True),
        (3, 0, "d = Pad (c, pads)", False),
        (3, 0, "d = Pad (c, pads, half)", True),
        (3, 0, 'd = Pad <mode = "edge"> (c, pads)', False),
        (3, 0, "d = Resize (c, none, scales)", True),
        (3, 0, "t = ConvTranspose <strides = [2, 2]> (c, up) d = Relu (t)", False),
        (3, 0, "r = Add (c, place) d = Relu (r)", False),
    ],
)
def test_constants_go_into_the_bias_where_there_is_no_border(
    k: int, pad: int, body: str, folded: bool, tmp_path: Path
) -> None:
    constants = f"{MORE}, float half = {{0.5}}, float[8, 8, 2, 2] up, float[1, 1, 6, 6] place"
    proto = soft_pruned(framed(body, constants, k, pad), 2, 5, bias=0.5)
    result, after = minimal(proto, tmp_path)
    assert gone(result) == (0, 2 * folded)
    assert sizes(after)["w"][0] == 8 - 2 * folded
    before = next(t for t in proto.graph.initializer if t.name == "vb")
    bias = next(t for t in after.graph.initializer if t.name == "vb")
    assert (before.raw_data != bias.raw_data) == folded


@pytest.mark.parametrize("version", [3, 8])
def test_constants_go_into_a_bias_that_was_not_there(version: int, tmp_path: Path) -> None:
    """A convolution and a dense layer without bias, through pooling; the scale of the product counts.

    Old files list all their constants as inputs.
    """
    proto = build(f"""
        <ir_version: {version}, opset_import: ["" : {8 if version == 3 else 17}]>
        pooled (float[1, 2, 6, 6] x) => (float[n, m] y)
        <float[8, 2, 3, 3] w, float[8] b, float[6, 8, 1, 1] v, float[6, 4] u, float[4] ub>
        {{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Sigmoid (c) d = Conv (r, v) e = Relu (d)
          p = GlobalAveragePool (e) f = Flatten (p) y = Gemm <alpha = 0.5> (f, u{", ub" if version == 3 else ""}) }}""")
    if version == 3:
        proto.graph.input.extend(helper.make_tensor_value_info(n, 1, d) for n, d in sizes(proto).items())
    proto = edited(proto, w=put(0, [0, 3]), b=put(0.25, [0, 3]), v=put(0, 4))
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = compress(source, target, Options(exact=True))
    assert result.proof.max_relative_error < TIGHT
    assert gone(result) == (0, 3)
    assert constant_shapes(target)["u"] == [5, 4]
    onnx.checker.check_model(str(target), full_check=True)


# ties


RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float[{batch}, 2, {size}, {size}] x) => (float[n, 3, h, w] y)
<float[8, 2, 3, 3] w, float[8] b, float[4, 8, 1, 1] p, float[4, 4, 3, 3] q, float[8, 4, 1, 1] r, float[8] rb,
 float[3, 8, 1, 1] v>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    s = Relu (c)
    e = Conv (s, p)
    f = Relu (e)
    g = Conv <pads = [1, 1, 1, 1]> (f, q)
    h = Relu (g)
    a = Conv (h, r, rb)
    t = Add (a, s)
    u = Relu (t)
    y = Conv (u, v)
}}
"""
LARGE = {"batch": 1, "size": 6}


def residual(where: Mapping[str, object] = LARGE) -> onnx.ModelProto:
    return edited(build(RESIDUAL.format(**where)), rb=put(0, slice(None)))


@pytest.mark.parametrize("where", [LARGE, {"batch": "N", "size": "S"}], ids=["fixed", "free"])
def test_a_branch_of_zeros_goes_whole(where: Mapping[str, object], tmp_path: Path) -> None:
    result, after = minimal(edited(residual(where), r=put(0, slice(None))), tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Relu", "Conv"]
    assert set(sizes(after)) == {"w", "b", "v"}
    assert result.tidied["branch"] == 1
    assert result.exact is not None and result.exact["layers"] == ["E", "G", "A"]
    assert result.after.kernels == 8 * 2 + 3 * 8


def test_a_branch_goes_though_only_what_is_read_of_it_is_zero(tmp_path: Path) -> None:
    proto = edited(residual(), r=put(0, slice(2, None)), v=put(0, slice(None), [0, 1]))
    _, after = minimal(proto, tmp_path)
    assert sizes(after) == {"w": [6, 2, 3, 3], "b": [6], "v": [3, 6, 1, 1]}


def test_tied_channels_stay_together(tmp_path: Path) -> None:
    """Zeros in one operand of a sum do not free the other's; zeros in both do."""
    assert gone(minimal(edited(residual(), r=put(0, [1, 2])), tmp_path)[0]) == (0, 0)
    both = edited(residual(), r=put(0, [1, 2]), w=put(0, [2, 3]), b=put(0, [2, 3]))
    result, after = minimal(both, tmp_path)
    assert gone(result) == (0, 1)
    assert sizes(after)["r"] == [7, 4, 1, 1]


def test_a_sum_that_cancels_is_no_branch_of_zeros(tmp_path: Path) -> None:
    """One and minus one add up to nothing that anything reads, yet neither of them is nothing."""
    proto = framed("k = Conv <pads = [1, 1, 1, 1]> (x, w2, b2) d = Add (c, k)", "float[8, 2, 3, 3] w2, float[8] b2")
    proto = edited(soft_pruned(proto, 1, bias=1), w2=put(0, slice(None)), b2=put(0, slice(None)))
    result, after = minimal(edited(proto, b2=put(-1, 1)), tmp_path)
    assert "Add" in [node.op_type for node in after.graph.node]
    assert gone(result) == (0, 1)


def test_operands_of_a_concat(tmp_path: Path) -> None:
    """What nothing reads of an operand goes; an operand that is not read at all goes with all that made it.

    Both copies of channel 2 are unread, and one of channel 7.
    """
    body = "e = Conv <pads = [1, 1, 1, 1]> (x, k) f = Relu (e) g = Conv (f, i) d = Concat <axis = 1> (c, g, c)"
    proto = framed(body, "float[5, 2, 3, 3] k, float[4, 5, 1, 1] i", read=20)
    proto = edited(proto, v=put(0, slice(None), [2, *range(8, 12), 14, 19]))
    result, after = minimal(proto, tmp_path)
    assert (sizes(after)["v"][1], sizes(after)["w"][0]) == (13, 7)
    assert "k" not in sizes(after)
    assert result.exact is not None and result.exact["layers"] == ["E", "G"]


def test_groups_go_whole_or_not_at_all(tmp_path: Path) -> None:
    grouped = framed("r = Relu (c) d = Conv <group = 4> (r, k)", "float[8, 2, 1, 1] k")
    assert gone(minimal(soft_pruned(grouped, 0, 1, 4), tmp_path)[0]) == (0, 1)


def test_no_tensor_loses_its_last_channel(tmp_path: Path) -> None:
    proto = soft_pruned(framed("d = Relu (c)"), *range(8))
    _, after = minimal(proto, tmp_path)
    assert sizes(after)["w"] == [1, 2, 3, 3]


def test_shared_weights(tmp_path: Path) -> None:
    """A filter that two layers share is not needed only if neither needs it."""
    body = "f = Conv <pads = [1, 1, 1, 1]> (x2, w, b) g = Conv (f, k) h = Conv (c, v2) d = Concat <axis = 1> (g, h)"
    proto = framed(f"x2 = Neg (x) {body}", "float[4, 8, 1, 1] k, float[4, 8, 1, 1] v2")
    one = edited(proto, k=put(0, slice(None), [3, 5]))
    assert gone(minimal(one, tmp_path)[0]) == (0, 0)
    assert gone(minimal(edited(one, v2=put(0, slice(None), [5, 6])), tmp_path)[0]) == (1, 0)


# files


@pytest.mark.parametrize("listed", ["w", "b", "v", "vb"])
def test_what_a_caller_may_override_is_no_zero(listed: str, tmp_path: Path) -> None:
    proto = edited(soft_pruned(framed("d = Relu (c)"), 1), v=put(0, slice(None), 4))
    dims = sizes(proto)[listed]
    proto.graph.input.append(helper.make_tensor_value_info(listed, TensorProto.FLOAT, dims))
    result, after = minimal(proto, tmp_path)
    assert list(after.graph.input) == list(proto.graph.input)
    assert gone(result) == {"w": (0, 0), "b": (0, 0), "v": (0, 0), "vb": (1, 1)}[listed]
    assert sizes(after)[listed] == dims


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_number_formats(kind: int, tmp_path: Path) -> None:
    """In half precision a bias is too coarse to make up for a constant."""
    proto = framed("d = Relu (c)", pad=0, opset=22)
    proto.ir_version = 10
    proto = edited(proto, w=put(0, [0, 1, 2]), b=put(0, [0, 1]), v=put(0, slice(None), 7))
    proto = edited(proto, b=put(0.5, 2))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.elem_type = kind
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = compress(source, target, Options(exact=True))
    assert constant_shapes(target)["w"] == [4 if kind == TensorProto.DOUBLE else 5, 2, 3, 3]
    assert {t.data_type for t in onnx.load(target).graph.initializer} == {kind}
    assert result.proof.passed


def test_a_minimal_model_is_copied(tmp_path: Path) -> None:
    source = saved(framed("d = Relu (c)"), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--exact")
    assert done.returncode == 0
    assert "nothing could be removed" in done.stdout
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_pinned_and_ignored_channels_stay(tmp_path: Path) -> None:
    proto = soft_pruned(framed("d = Relu (c)"), 1, 2)
    assert gone(minimal(proto, tmp_path, pin=("d",))[0]) == (0, 0)
    assert gone(minimal(proto, tmp_path, ignore=("C",))[0]) == (0, 0)
    kept = edited(residual(), r=put(0, slice(None)))
    assert minimal(kept, tmp_path, pin=("a",))[0].tidied == {}
    with pytest.raises(OptionError):
        minimal(proto, tmp_path, pin=("nothing",))


def test_the_report_says_what_went_and_why(tmp_path: Path) -> None:
    proto = edited(residual(), r=put(0, slice(None)), v=put(0, slice(None), 3), w=put(0, 4), b=put(0, 4))
    source = saved(proto, tmp_path / "in.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--exact")
    assert row["exact"] == {"channels": {"unread": 1, "constant": 1}, "layers": ["E", "G", "A"]}
    assert row["tidied"] == {"branch": 1, "unread": 5}
    assert row["kernels"]["before"] == 16 + 32 + 16 + 32 + 24
    assert row["kernels"]["after"] == 12 + 18
    assert row["params"]["after"] == sum(np.prod(dims) for dims in constant_shapes(tmp_path / "out.onnx").values())
    text = called("compress", source, tmp_path / "out.onnx", "--exact").stdout
    assert "equal to the original" in text
    assert "1 that nothing reads, 1 that hold one number" in text
    assert "Removed layers: E, G, A" in text


def test_plans_replay(tmp_path: Path) -> None:
    proto = edited(soft_pruned(framed("r = Relu (c) i = Identity (r) d = Clip (i)", pad=0), 1, 2, bias=0.5))
    source = saved(proto, tmp_path / "in.onnx")
    names = [tmp_path / name for name in ("a.onnx", "a.json", "b.onnx", "b.json")]
    row = called_json("compress", source, names[0], "--exact", "--plan-out", names[1], "--pin", "x")
    again = called_json("compress", source, names[2], "--plan", names[1], "--plan-out", names[3])
    assert names[0].read_bytes() == names[2].read_bytes()
    assert names[1].read_bytes() == names[3].read_bytes()
    assert row["exact"] == again["exact"]
    plan = json.loads(names[1].read_text())
    assert plan["tensors"]["w"]["kept"][0] == [0, 3, 4, 5, 6, 7]
    plan["tensors"]["w"]["kept"][0] = [0, 1, 3, 4, 5, 6]
    names[1].write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="make it again"):
        compress(source, names[2], Options(plan=load_plan(names[1])))


@pytest.mark.parametrize("other", ["--keep=0.5", "--macs=0.5", "--params=0.5", "--plan=p.json", "--latency=0.5"])
def test_exact_excludes_budgets(other: str, tmp_path: Path) -> None:
    source = saved(framed("d = Relu (c)"), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--exact", other)
    assert done.returncode == 2
    assert "--plan or --exact, for example" in done.stderr


# properties


def holders(proto: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    yield from proto.graph.initializer
    for node in proto.graph.node:
        yield from (a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value")


def with_zeros(proto: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Rows, columns and entries of float constants set to zero, some entries to one."""
    rng = np.random.default_rng(seed)
    for tensor in holders(proto):
        array = numpy_helper.to_array(tensor).copy()
        if array.dtype != np.float32 or array.size < 2:
            continue
        for axis in range(min(array.ndim, 2)):
            if rng.random() < 0.5:
                chosen = np.flatnonzero(rng.random(array.shape[axis]) < rng.choice([0.2, 0.5, 0.9, 1.0]))
                array[(slice(None),) * axis + (chosen,)] = 0 if array.ndim > 1 or rng.random() < 0.8 else 1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


@given(models(), st.integers(0, 1 << 20))
def test_random_zeros_change_nothing(proto: onnx.ModelProto, seed: int) -> None:
    """Proven against the original, or refused because the original itself puts out nothing that can be compared."""
    proto = with_zeros(proto, seed)
    note(onnx.printer.to_text(proto))
    with tempfile.TemporaryDirectory() as folder:
        source, target = saved_in(proto, Path(folder)), Path(folder) / "out.onnx"
        try:
            result = compress(source, target, Options(exact=True))
        except ModelError:
            assume(False)
        except ProofFailed as error:
            assert "nothing that can be compared" in str(error)
            return
        event("smaller" if result.after.kernels < result.before.kernels else "as large")
        assert result.proof.max_relative_error <= (TIGHT if result.proof.bound < 1e-2 else result.proof.bound)
        assert list(onnx.load(target).graph.output) == list(proto.graph.output)


@given(models(), st.floats(0.05, 0.95))
def test_what_masks_leave_behind_is_found(proto: onnx.ModelProto, keep: float) -> None:
    """Masked by any selection, a network minimises to at most what surgery would have left of it."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved_in(proto, Path(folder)))
        assume(not model.overridable)
        dag = analyse(model, observe(model, {}))
        chosen = select(dag, Request(Budget("kernels", keep), "l1", best_effort=True))
        masked = load(saved_in(apply(model, masking_patch(dag, chosen.alive)), Path(folder), "masked.onnx"))
        again = analyse(masked, observe(masked, {}))
        assert cost_model(again)(contributing(again).alive).kernels <= chosen.after.kernels


# mutants


SOFT = {
    "border": (framed, "d = Relu (c)", 0.5),
    "pool": (framed, "d = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1> (c)", 0.5),
    "shift": (framed, "d = Relu (c)", 0.5),
    "activation": (framed, "e = Exp (c) d = Relu (e)", 0.0),
    "sum": (framed, "s = Sigmoid (c) d = Add (c, s)", 0.0),
}


@pytest.mark.parametrize("name", SOFT)
def test_wrong_rules_are_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders forgotten, biases not made up for, zeros that are none: nothing is written."""
    make, body, bias = SOFT[name]
    proto = soft_pruned(make(body, pad=1 if name in ("border", "activation", "sum") else 0), 1, 4, bias=bias)
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    compress(source, tmp_path / "right.onnx", Options(exact=True))
    if name in ("border", "pool"):
        monkeypatch.setattr(steady, "is_padded", lambda node: False)
    elif name == "shift":
        monkeypatch.setattr(exact, "_shifts", lambda *_: {})
    else:
        found = {"activation": "Exp", "sum": "Add"}[name]
        monkeypatch.setattr(steady, "POINTWISE", steady.POINTWISE - {found})
        monkeypatch.setattr(steady, "MOVING", steady.MOVING | {found})
    with pytest.raises(ProofFailed, match="differs from the original"):
        compress(source, target, Options(exact=True))
    assert not target.exists()

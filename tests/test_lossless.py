"""``--exact`` removes what contributes nothing, nothing else, and keeps the output of the original."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, event, given, note, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from leanonnx.analysis import constant_channels as steady
from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import build_channel_dag
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.graph.model import load
from leanonnx.lossless import exact
from leanonnx.lossless.exact import find_contributing_channels
from leanonnx.runtime.observation import observe
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch
from tests.graphs import models
from tests.graphs import saved as saved_in
from tests.helpers import Options, build, constant_shapes, saved
from tests.soft_pruned import TIGHT, edited, framed, gone, minimal, put, sizes, soft_pruned

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

HALF = settings(max_examples=settings.default.max_examples // 2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_zeros_are_followed_through(name: str, tmp_path: Path) -> None:
    """All-zero filters are removed, whatever passes the zeros on; the border of a padded convolution is zero too."""
    proto = soft_pruned(framed(ACTIVATIONS[name], MORE), 1, 4, 6)
    result, after = minimal(proto, tmp_path)
    assert (sizes(after)["w"][0], sizes(after)["v"][1]) == (5, 5)
    assert gone(result) == (0, 3)


def test_channels_read_only_by_zeros_are_removed(tmp_path: Path) -> None:
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
    """Channels multiplied by zero are removed; so is the mask, once only ones are left of it."""
    constants = f"{mask} mask = {{1, 0, 1, 1, 0, 1, 0, 1}}, float zero = {{0}}, bool[8, 1, 1] kept"
    proto = edited(framed(f"r = Relu (c) d = {op}", constants), kept=lambda array: np.copyto(array, True))
    if "Where" in op:
        result, after = minimal(edited(proto, kept=put(False, [1, 4, 6])), tmp_path)
        assert gone(result) == (0, 0)
        return
    result, after = minimal(proto, tmp_path)
    assert gone(result) == (0, 3)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Conv"]


# the border: a constant channel is not constant for a kernel that overlaps the border


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
def test_constants_are_added_to_the_bias_where_there_is_no_border(
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
def test_constants_are_added_to_a_new_bias(version: int, tmp_path: Path) -> None:
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
    result = compress_file(source, target, Options(exact=True))
    assert result.proof.max_relative_error < TIGHT
    assert gone(result) == (0, 3)
    assert constant_shapes(target)["u"] == [5, 4]
    onnx.checker.check_model(str(target), full_check=True)


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


@HALF
@given(models(), st.integers(0, 1 << 20))
def test_random_zeros_change_nothing(proto: onnx.ModelProto, seed: int) -> None:
    """Proven against the original, or refused because the original's outputs are not comparable."""
    proto = with_zeros(proto, seed)
    note(onnx.printer.to_text(proto))
    with tempfile.TemporaryDirectory() as folder:
        source, target = saved_in(proto, Path(folder)), Path(folder) / "out.onnx"
        try:
            result = compress_file(source, target, Options(exact=True))
        except ModelError:
            assume(False)
        except ProofFailed as error:
            assert "no output of the model can be compared" in str(error)
            return
        event("smaller" if result.after.kernels < result.before.kernels else "as large")
        assert result.proof.max_relative_error <= (TIGHT if result.proof.bound < 1e-2 else result.proof.bound)
        assert list(onnx.load(target).graph.output) == list(proto.graph.output)


@HALF
@given(models(), st.floats(0.05, 0.95))
def test_what_masks_leave_behind_is_found(proto: onnx.ModelProto, keep: float) -> None:
    """Masked by any selection, a network minimises to at most what surgery would have left of it."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved_in(proto, Path(folder)))
        assume(not model.overridable)
        dag = build_channel_dag(model, observe(model, {}))
        assume(not dag.reductions)  # a mask zeroes what is summed over channels by a Where, which is not followed
        chosen = select(dag, SelectionRequest(budget=Budget("kernels", keep), method="l1", best_effort=True))
        masked = load(saved_in(apply_patch(model, masking_patch(dag, chosen.alive)), Path(folder), "masked.onnx"))
        again = build_channel_dag(masked, observe(masked, {}))
        assert cost_model(again)(find_contributing_channels(again).alive).kernels <= chosen.after.kernels


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
    """Borders ignored, biases not compensated, values mistaken for zeros: nothing is written."""
    make, body, bias = SOFT[name]
    proto = soft_pruned(make(body, pad=1 if name in ("border", "activation", "sum") else 0), 1, 4, bias=bias)
    source, target = saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    compress_file(source, tmp_path / "right.onnx", Options(exact=True))
    if name in ("border", "pool"):
        monkeypatch.setattr(steady, "is_padded", lambda node: False)
    elif name == "shift":
        monkeypatch.setattr(exact, "_shifts", lambda *_: {})
    else:
        found = {"activation": "Exp", "sum": "Add"}[name]
        monkeypatch.setattr(steady, "POINTWISE_OPERATORS", steady.POINTWISE_OPERATORS - {found})
        monkeypatch.setattr(steady, "NUMBER_PRESERVING", steady.NUMBER_PRESERVING | {found})
    with pytest.raises(ProofFailed, match="differs from the original"):
        compress_file(source, target, Options(exact=True))
    assert not target.exists()

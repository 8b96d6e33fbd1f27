"""Networks with free input axes: the written model is correct at every size, not only at the observed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leanonnx.analysis.agreement import common_edit, has_same_layout
from leanonnx.analysis.closure import Closure
from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.model import load
from leanonnx.numeric.channel_ids import Mask, on_axis
from leanonnx.proof.proof import relative_error
from leanonnx.rules.call import Edit, Select, ShapeEdit
from leanonnx.runtime.free_axes import AxisGroup, InputShapes, axis_groups, find_further_sizes
from leanonnx.runtime.observation import observe, random_feed
from leanonnx.runtime.sessions import RunFailed, run
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import Patch, masking_patch, plan_patch
from tests.helpers import build, saved

BOUND = 1e-4

HEADS = """
<ir_version: 8, opset_import: ["" : 13]>
attention (float[N, 3, 8, 8] x) => (float[N, 4] y)
<float[16, 3, 3, 3] w, float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[16, 16] wo, float[4, 16] u,
 int64[3] rows = {0, 16, -1}, int64[4] split = {0, 0, 4, 4}, int64[1] zero = {0}, int64[1] one = {1},
 int64[1] four = {4}, int64[2] tail = {-1, 4}, int64[3] back = {4, -1, 4}, int64[3] merged = {0, 0, 16}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  f = Reshape (r, rows)  t = Transpose <perm = [0, 2, 1]> (f)
    s = Shape (t)  b = Slice (s, zero, one, zero)  bh = Mul (b, four)  folded = Concat <axis = 0> (bh, tail)
    q0 = MatMul (t, wq)  q1 = Reshape (q0, split)  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)  q = Reshape (q2, folded)
    k0 = MatMul (t, wk)  k1 = Reshape (k0, split)  k2 = Transpose <perm = [0, 2, 1, 3]> (k1)  k = Reshape (k2, folded)
    v0 = MatMul (t, wv)  v1 = Reshape (v0, split)  v2 = Transpose <perm = [0, 2, 1, 3]> (v1)  v = Reshape (v2, folded)
    kt = Transpose <perm = [0, 2, 1]> (k)  qk = MatMul (q, kt)  p = Softmax <axis = -1> (qk)  o = MatMul (p, v)
    unfolded = Concat <axis = 0> (b, back)  o1 = Reshape (o, unfolded)  o2 = Transpose <perm = [0, 2, 1, 3]> (o1)
    o3 = Reshape (o2, merged)  z = MatMul (o3, wo)  m = ReduceMean <axes = [1], keepdims = 0> (z)
    y = Gemm <transB = 1> (m, u)
}
"""
ROWS = """
<ir_version: 8, opset_import: ["" : 13]>
rows (float[N, 3, H, W] x) => (float[N, 4, H, W] y)
<float[12, 3, 3, 3] w, float[4, 12, 1, 1] u, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2},
 int64[1] i3 = {3}, int64[1] rest = {-1}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  f = Relu (c)  s = Shape (f)
    n = Slice (s, i0, i1, i0)  ch = Slice (s, i1, i2, i0)  h = Slice (s, i2, i3, i0)
    nc = Mul (n, ch)  nch = Mul (nc, h)  target = Concat <axis = 0> (nch, rest)
    flat = Reshape (f, target)  top = ReduceMax <axes = [1], keepdims = 1> (flat)  low = Sub (flat, top)
    back = Reshape (low, s)  y = Conv (back, u)
}
"""
FOLDED_SHAPE = """
<ir_version: 8, opset_import: ["" : 13]>
folded (float[N, 3, H, W] x) => (float[N, 4, H, W] y)
<float[12, 3, 3, 3] w, float[4, 12, 1, 1] u, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2},
 int64[1] i4 = {4}, int64[2] tail = {1, -1}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  f = Relu (c)  s = Shape (f)
    n = Slice (s, i0, i1, i0)  ch = Slice (s, i1, i2, i0)  nc = Mul (n, ch)  hw = Slice (s, i2, i4, i0)
    target = Concat <axis = 0> (nc, i1, hw)  maps = Reshape (f, target)
    pooled = Softmax <axis = -1> (maps)
    own = Shape (pooled)  rows = Slice (own, i0, i1, i0)  per = Div (rows, n)
    back = Concat <axis = 0> (n, per, hw)  g = Reshape (pooled, back)  y = Conv (g, u)
}
"""
GROUPS = """
<ir_version: 8, opset_import: ["" : 17]>
groups (float[N, 3, H, W] x) => (float[N, 4, H, W] y)
<float[12, 3, 3, 3] w, float[4, 12, 1, 1] u, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] three = {3},
 int64[1] rest = {-1}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  s = Shape (c)  n = Slice (s, i0, i1, i0)  ng = Mul (n, three)
    target = Concat <axis = 0> (ng, rest)  flat = Reshape (c, target)
    mean = ReduceMean <axes = [1], keepdims = 1> (flat)  centred = Sub (flat, mean)
    back = Reshape (centred, s)  y = Conv (back, u)
}
"""
GATE = """
<ir_version: 8, opset_import: ["" : 17]>
gate (float[n, 3, h, w] x, float[n, c, h, w] skip) => (float[n, 4, h, w] y)
<float[12, 3, 3, 3] w1, float[12, 12, 3, 3] w2, float[4, 12, 1, 1] u>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)  b = Relu (a)  d = Conv <pads = [1, 1, 1, 1]> (b, w2)
    e = Add (d, skip)  f = Relu (e)  y = Conv (f, u)
}
"""
TOKEN = """
<ir_version: 8, opset_import: ["" : 17]>
token (float[N, 3, H, W] x) => (float[N, 4] y)
<float[12, 3, 4, 4] w, float[1, 1, 12] cls, float[12, 12] v, float[4, 12] u, int64[3] rows = {0, 12, -1},
 int64[1] i0 = {0}, int64[1] i1 = {1}, int64[2] tail = {1, 12}, int64 first = {0}>
{
    c = Conv <strides = [4, 4]> (x, w)  f = Reshape (c, rows)  t = Transpose <perm = [0, 2, 1]> (f)
    s = Shape (t)  n = Slice (s, i0, i1, i0)  size = Concat <axis = 0> (n, tail)  tokens = Expand (cls, size)
    all = Concat <axis = 1> (tokens, t)  m = MatMul (all, v)  r = Relu (m)  mean = ReduceMean <axes = [1]> (r)
    one = Gather <axis = 1> (mean, first)  y = Gemm <transB = 1> (one, u)
}
"""
MODELS = {
    "heads folded into the batch": HEADS,
    "channels and rows folded into the batch": ROWS,
    "shape asked of channels folded into the batch": FOLDED_SHAPE,
    "groups folded into the batch": GROUPS,
    "token repeated over the batch": TOKEN,
}


def analysed(text: str, folder: Path) -> ChannelDag:
    model = load(saved(build(text), folder / "in.onnx"))
    free = [v.name for v in model.inputs if not v.type.tensor_type.shape.dim[2].HasField("dim_value")]
    return build_channel_dag(model, observe(model, {name: (1, 3 if name == "x" else 1, 16, 16) for name in free}))


def half(dag: ChannelDag, seed: int) -> Mask:
    """A keep set of about half of the channels."""
    rng = np.random.default_rng(seed)
    return Closure(dag, dag.groups).alive_channels((rng.random(int(dag.groups.max()) + 1) < 0.5) | dag.pinned_groups)


def worst_error(dag: ChannelDag, patch: Patch, alive: Mask) -> float:
    """The largest relative error over all sizes that were observed; infinite where the result does not run."""
    reference, candidate = apply_patch(dag.model.as_read, masking_patch(dag, alive)), apply_patch(dag.model, patch)
    base = {value.name: dag.shapes[value.name] for value in dag.model.inputs}
    found = [0.0]
    for sizes in (base, *dag.observation.further_sizes):
        feed = random_feed(dag.model, sizes, 1)
        wanted = run(reference, [feed], optimise=False)[0]
        try:
            outputs = run(candidate, [feed], optimise=False)[0]
        except RunFailed:
            return float("inf")
        found += [relative_error(a, b) for a, b in zip(wanted, outputs, strict=True)]
    return max(found)


@pytest.mark.parametrize("name", MODELS)
def test_result_holds_at_every_size(name: str, tmp_path: Path) -> None:
    dag = analysed(MODELS[name], tmp_path)
    assert len(dag.observation.further_sizes) > 1
    cost = cost_model(dag)
    for seed in range(3):
        alive = half(dag, seed)
        assert cost(alive).kernels < 0.8 * cost(dag.all_alive).kernels
        assert worst_error(dag, plan_patch(dag, alive), alive) < BOUND


@pytest.mark.parametrize("name", ["heads folded into the batch", "channels and rows folded into the batch"])
def test_sizes_of_one_run_do_not_hold(name: str, tmp_path: Path) -> None:
    """A patch that lays the sizes of the first run over computed vectors is found out."""
    dag = analysed(MODELS[name], tmp_path)
    drawn = ((alive, plan_patch(dag, alive)) for alive in (half(dag, seed) for seed in range(9)))
    alive, patch = next(pair for pair in drawn if pair[1].shape_edits)
    observed = replace(
        patch,
        shape_edits={place: replace(change, original_sizes={}) for place, change in patch.shape_edits.items()},
        output_edits={place: replace(change, original_sizes={}) for place, change in patch.output_edits.items()},
    )
    assert worst_error(dag, observed, alive) > BOUND


def test_axis_that_may_be_one_or_all_channels_is_no_broadcast(tmp_path: Path) -> None:
    dag = analysed(GATE, tmp_path)
    assert {sizes["skip"][1] for sizes in dag.observation.further_sizes} >= {1, 12}
    assert dag.pinned_groups[dag.groups[dag.channel_ids["d"]]].all()
    alive = half(dag, 0)
    assert not alive.all()
    assert worst_error(dag, plan_patch(dag, alive), alive) < BOUND


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1, 2, 3], [1, 2, 3], True),
        ([1, 1, 2, 2], [1, 2, 1, 2], True),
        ([1, 2], [1, 2, 1, 2], True),
        ([1, 1, 2, 2], [1, 1, 1, 2, 2, 2], True),
        ([1, 2, 2], [1, 2, 2, 2], False),
        ([1, 2], [1, 3, 1, 3], False),
    ],
)
def test_layouts_of_two_sizes(one: Sequence[int], other: Sequence[int], same: bool) -> None:
    first, second = (on_axis(np.asarray(line, np.int64), 1, 3) for line in (one, other))
    assert has_same_layout(first, second) is same


def test_another_rank_is_another_layout() -> None:
    """A Squeeze without axes drops a batch of one."""
    line = np.arange(3)
    assert not has_same_layout(on_axis(line, 1, 3), on_axis(line, 0, 2))


@pytest.mark.parametrize(
    ("edits", "held", "agree"),
    [
        ([Edit(inputs={1: ShapeEdit({0: 2}, {0: 4})}), Edit(inputs={1: ShapeEdit({0: 4}, {0: 8})})], False, True),
        ([Edit(inputs={1: ShapeEdit({0: 2}, {0: 4})}), Edit(inputs={1: ShapeEdit({0: 4}, {0: 8})})], True, False),
        ([Edit(inputs={1: ShapeEdit({0: 2}, {0: 4})}), Edit(inputs={1: ShapeEdit({0: 3}, {0: 5})})], False, False),
        ([Edit(inputs={1: ShapeEdit({0: 2})}), Edit(inputs={1: ShapeEdit({0: 2})})], False, True),
        ([Edit(inputs={1: ShapeEdit({0: 2})}), Edit(inputs={1: ShapeEdit({0: 3})})], False, False),
        ([Edit(inputs={1: ShapeEdit({0: 2})}), Edit(inputs={1: ShapeEdit({1: 2})})], False, False),
        ([Edit({"group": 2}), Edit({"group": 2})], False, True),
        ([Edit({"group": 2}), Edit({"group": 4})], False, False),
        ([Edit(inputs={0: Select(1, np.arange(2))}), Edit(inputs={0: Select(1, np.arange(3))})], False, False),
        ([Edit(inputs={0: np.arange(2)}), Edit(inputs={0: np.arange(2)})], False, True),
        ([Edit(inputs={0: np.arange(2)}), Edit(inputs={0: Select(0, np.arange(2))})], False, False),
        ([Edit(outputs={0: ShapeEdit({1: 8}, {1: 4})}), Edit(outputs={0: ShapeEdit({1: 16}, {1: 8})})], False, True),
        ([Edit(outputs={0: ShapeEdit({1: 8}, {1: 4})}), Edit(outputs={0: ShapeEdit({1: 9}, {1: 8})})], False, False),
        ([Edit(outputs={0: ShapeEdit({1: 8}, {1: 4})}), Edit(outputs={1: ShapeEdit({1: 8}, {1: 4})})], False, False),
        ([Edit(output_scales={0: 0.5}), Edit(output_scales={0: 0.25})], False, False),
    ],
)
def test_edits_of_two_sizes(edits: list[Edit], held: bool, agree: bool) -> None:
    assert common_edit(edits, lambda slot: held) is (edits[0] if agree else None)


def test_axes_of_one_name_change_together() -> None:
    declared = {"a": ["N", 3, "H", "?"], "b": ["N", 7], "c": ["?", 3, 5, "?"]}
    base: InputShapes = {"a": (1, 3, 64, 64), "b": (1, 7), "c": (1, 3, 5, 64)}
    places = [set(group.axes) for group in axis_groups(declared, base, [])]
    assert places == [{("a", 0), ("b", 0)}, {("a", 2)}, {("a", 3), ("c", 3)}, {("c", 0)}]


def test_axes_that_only_run_together_are_changed_together() -> None:
    groups = [AxisGroup((("x", 0),), (8, 16)), AxisGroup((("x", 1),), (8, 16)), AxisGroup((("x", 2),), (5, 6))]
    found = find_further_sizes(groups, {"x": (4, 4, 3)}, lambda sizes: sizes["x"][0] == sizes["x"][1])
    alone, jointly = ({sizes["x"] for sizes in part} for part in (found.alone, found.jointly))
    assert alone == {(4, 4, 5), (4, 4, 6), (8, 8, 3), (16, 16, 3)}
    assert jointly == {(8, 8, 5), (16, 16, 6)}

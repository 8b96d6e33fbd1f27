"""On random networks with free axes, the compact network equals the masked original at every size.

Each network is observed at one size and run at two more, which differ in every free axis.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import currently_in_test_context, event, given, note, settings
from hypothesis import strategies as st

from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.model import load
from leanonnx.numeric.channel_ids import Mask
from leanonnx.runtime.free_axes import axis_groups, find_further_sizes
from leanonnx.runtime.observation import observe
from leanonnx.runtime.trials import declared_sizes
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch, plan_patch
from tests.at_sizes import BOUND, Pair, Shapes, as_observed, errors, runs_at
from tests.free_models import FreeModel, from_seed, models
from tests.graphs import saved
from tests.helpers import build
from tests.test_masked_equals_compact import assert_same_interface, compacted, kept_by_rank, killed

MANY = 2000
EXAMPLES = settings.default.max_examples * (5 if settings.default.max_examples >= MANY else 1)
"""The long profile draws ten thousand."""

HEADER = """
<ir_version: 8, opset_import: ["" : 17]>
found (float[N, 2, H, W] x) => (float[n, m] y)
"""
SIZES: tuple[Shapes, ...] = ({"x": (1, 2, 2, 6)}, {"x": (3, 2, 4, 4)}, {"x": (2, 2, 2, 8)})
FOUND = {
    "target entry of one that broadcasts": """
        <float[4, 2, 1, 1] w, float[4, 3] u, int64[1] i2 = {2}, int64[1] i4 = {4}, int64[1] zero = {0},
         int64[2] lead = {1, 1}>
        { c = Conv (x, w)  s = Shape (c)  hw = Slice (s, i2, i4, zero)  target = Concat <axis = 0> (lead, hw)
          p = GlobalAveragePool (c)  e = Expand (p, target)  a = Mul (e, c)
          m = ReduceMean <axes = [2, 3], keepdims = 0> (a)  y = Gemm (m, u) }""",
    "token of one number's width, repeated over the batch": """
        <float[4, 2, 1, 1] w, float[1, 1, 4] token, float[4, 3] u, int64[3] rows = {0, 4, -1}, int64[1] zero = {0},
         int64[1] one = {1}, int64[2] tail = {1, 1}>
        { c = Conv (x, w)  f = Reshape (c, rows)  t = Transpose <perm = [0, 2, 1]> (f)
          s = Shape (t)  n = Slice (s, zero, one, zero)  target = Concat <axis = 0> (n, tail)
          e = Expand (token, target)  a = Concat <axis = 1> (e, t)
          m = ReduceMean <axes = [1], keepdims = 0> (a)  y = Gemm (m, u) }""",
    "target entry of zero where channels come to lie": """
        <float[4, 2, 1, 1] w, float[2, 3] u, int64[1] zero = {0}, int64[1] one = {1}, int64[3] tail = {2, 0, -1}>
        { p = GlobalAveragePool (x)  b = Concat <axis = 2> (p, p)  c = Conv (b, w)
          s = Shape (c)  n = Slice (s, zero, one, zero)  target = Concat <axis = 0> (n, tail)
          r = Reshape (c, target)  t = Transpose <perm = [0, 1, 3, 2]> (r)  g = MatMul (t, u)
          y = ReduceMean <axes = [1, 2], keepdims = 0> (g) }""",
    "movements of which only the shape is read": """
        <float[4, 2, 1, 1] w, float[4, 3] u, int64[4] apart = {0, 2, 2, 1}, int64[3] list = {0, 2, 2},
         int64[1] zero = {0}, int64[1] three = {3}>
        { c = Conv (x, w)  p = GlobalMaxPool (c)  r = Reshape (p, apart)  t = Transpose <perm = [0, 1, 3, 2]> (r)
          d = Reshape (t, list)  s = Shape (d)  n = Gather <axis = 0> (s, zero)  target = Concat <axis = 0> (n, three)
          m = ReduceMean <axes = [2, 3], keepdims = 0> (c)  g = Gemm (m, u)  o = ConstantOfShape (target)
          y = Add (g, o) }""",
    "reshaped weight of a grouped layer that reads a graph input": """
        <float[18] w, int64[4] shape = {6, 1, 1, 3}, float[3, 6, 1, 1] v>
        { k = Reshape (w, shape)  c = Conv <group = 2, pads = [0, 1, 0, 1]> (x, k)  d = Conv (c, v)
          y = ReduceMean <axes = [2, 3], keepdims = 0> (d) }""",
    "quantised weight of which a node without channels reads the value": """
        <int8[4, 2, 1, 1] q = {50, -70, 127, 20, 1, 2, 30, 40}, float s = {0.01}, float[4, 3] u,
         int64[4] axes = {0, 1, 2, 3}>
        { k = DequantizeLinear (q, s)  c = Conv (x, k)  p = ReduceSum <keepdims = 0> (k, axes)  d = Relu (c)
          m = ReduceMean <axes = [2, 3], keepdims = 0> (d)  g = Gemm (m, u)  y = Add (g, p) }""",
    "quantised weight of two layers, one of which is pinned": """
        <float[4, 2, 1, 1] w, float[4, 2, 1, 1] v, int8[4, 3] q = {50, -70, 127, 20, 1, 2, 30, 40, 99, 7, -80, -9},
         float s = {0.01}, float[3] b, int64[1] three = {3}>
        { k = DequantizeLinear (q, s)  c = Conv (x, w)  d = Conv (x, v)
          m = ReduceMean <axes = [2, 3], keepdims = 0> (c)  n = ReduceMean <axes = [2, 3], keepdims = 0> (d)
          h = Shape <start = 0, end = 1> (x)  r = Div (h, h)  t = Concat <axis = 0> (r, three)  z = Reshape (b, t)
          g = Gemm (m, k)  f = Gemm (n, k, z)  y = Add (g, f) }""",
}
"""Failures that these tests have found, minimised."""


@contextmanager
def analysed(model: FreeModel) -> Iterator[ChannelDag]:
    """The channel DAG of a model, observed at the first of its sizes."""
    if currently_in_test_context():
        note(f"{onnx.printer.to_text(model.proto)}\nsizes: {model.sizes}")
    with tempfile.TemporaryDirectory() as folder:
        found = load(saved(model.proto, Path(folder)))
        yield build_channel_dag(found, observe(found, model.sizes[0]))


def pair_of(dag: ChannelDag, alive: Mask, compact: onnx.ModelProto) -> Pair:
    return Pair(apply_patch(dag.model.as_read, masking_patch(dag, alive)), compact, dag.model.inputs)


def check(dag: ChannelDag, alive: Mask, sizes: tuple[Shapes, ...]) -> None:
    """Equal at all sizes, and sample by sample."""
    compact = compacted(dag, alive)
    onnx.checker.check_model(compact, full_check=True)
    assert_same_interface(dag.model.proto, compact)
    pair = pair_of(dag, alive, compact)
    for shapes in sizes:
        pair.assert_equal(shapes)
    if all(isinstance(declared_sizes(value)[0], str) for value in dag.model.inputs):
        pair.assert_samples_alone(next(s for s in sizes if next(iter(s.values()))[0] == 3))


@given(models(), st.integers(0, 1 << 30), st.booleans())
@settings(max_examples=EXAMPLES)
def test_masked_equals_compact_at_every_size(model: FreeModel, seed: int, ranked: bool) -> None:
    """Classes of channels die at random, or what a random ranking leaves."""
    rng = np.random.default_rng(seed)
    with analysed(model) as dag:
        alive = kept_by_rank(dag, rng, separate_readers=True) if ranked else killed(dag, rng)
        event("nothing removed" if alive.all() else "channels removed")
        check(dag, alive, model.sizes)


def test_random_models_run_at_every_size() -> None:
    """The test above is meaningful only if the original runs at all sizes."""
    drawn = [from_seed(seed) for seed in range(60)]
    assert all(len(runs_at(m.proto, m.proto.graph.input, m.sizes)) == len(m.sizes) for m in drawn)


@pytest.mark.parametrize("name", FOUND)
def test_networks_that_once_went_wrong(name: str) -> None:
    """Small networks for which some keep set once gave a model that was wrong at some size."""
    with analysed(FreeModel(build(HEADER + FOUND[name]), SIZES)) as dag:
        for seed in range(12):
            check(dag, killed(dag, np.random.default_rng(seed)), SIZES)


PUT_OUT = """
<ir_version: 8, opset_import: ["" : 17]>
found (float[N, 2, H, W] x) => (float[n, 3, h, w] y, float[4, 2, 1, 1] k)
<int8[4, 2, 1, 1] q = {50, -70, 127, 20, 1, 2, 30, 40}, float s = {0.01}, float[3, 4, 1, 1] v>
{ k = DequantizeLinear (q, s)  c = Conv (x, k)  r = Relu (c)  y = Conv (r, v) }
"""


def test_sizes_that_change_together_change_their_product() -> None:
    """One axis doubled and another halved would leave the number of pixels as it is."""
    for shape in ((1, 3, 16, 16), (1, 3, 224, 224), (1, 3, 10, 8), (1, 3, 48, 96)):
        groups = axis_groups({"x": ["N", 3, "H", "W"]}, {"x": shape}, [])
        found = find_further_sizes(groups, {"x": shape}, lambda sizes: True)
        assert len(found.jointly) > 1
        assert any(np.prod(sizes["x"][2:]) != np.prod(shape[2:]) for sizes in found.jointly)


def test_quantised_weight_that_is_an_output_stays_whole() -> None:
    with analysed(FreeModel(build(PUT_OUT), SIZES)) as dag:
        assert dag.pinned_groups[dag.groups[dag.channel_ids["c"]]].all()
        assert any("reads all of 'k'" in pin.reason for pin in dag.pins)


def holds(pair: Pair, sizes: tuple[Shapes, ...]) -> bool:
    try:
        for shapes in sizes:
            pair.assert_equal(shapes)
    except Exception:  # onnxruntime has its own error types
        return False
    return True


def test_sizes_taken_from_the_observed_run_are_found_out() -> None:
    """Nothing shows at the size that was observed; at others such a patch is wrong, wherever a free axis is folded."""
    caught = seed = 0
    while caught < 3:
        model, seed = from_seed(seed), seed + 1
        assert seed < 80
        with analysed(model) as dag:
            alive = killed(dag, np.random.default_rng(seed))
            patch = plan_patch(dag, alive)
            if patch.shape_edits:
                pair = pair_of(dag, alive, apply_patch(dag.model, as_observed(patch)))
                assert holds(pair, model.sizes[:1])
                caught += not holds(pair, model.sizes)


def test_small_channels_are_not_hidden_by_large_ones() -> None:
    """Boxes in pixels and scores in one output: scores that are wrong, though the whole hardly differs."""
    wanted = np.concatenate([np.full((1, 50, 4), 600.0), np.full((1, 50, 3), 0.01)], 2).astype(np.float32)
    found = wanted.copy()
    found[..., 4:] = 0.02
    assert np.linalg.norm(found - wanted) < BOUND * np.linalg.norm(wanted)
    assert (errors([wanted], [found]) > BOUND).any()

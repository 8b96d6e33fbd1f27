"""Data-free recovery: copies and constants are compensated exactly, means by the plain formula."""

from __future__ import annotations

import math
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.graph.model import load
from leanonnx.inputs.synthetic import output_distances, smooth_inputs
from leanonnx.numeric import gaussian
from leanonnx.numeric.channel_ids import Mask
from leanonnx.numeric.gaussian import ChannelMoments, gaussian_channels
from leanonnx.recovery import data_free_draft as blind_draft
from leanonnx.recovery.data_free import DataFreeFit, fit_without_data
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from leanonnx.selection.metrics import Budget
from leanonnx.statistics.propagation import PropagatedMoments, propagate_statistics
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch
from tests.graphs import models
from tests.helpers import build, called_json, refused, saved

EXACT = 1e-5
FEW = settings(max_examples=max(settings.default.max_examples // 3, 1))
NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 3, 9, 9] x) => (float[2, 5, 5, 5] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[5, 8, 3, 3] w2 HEAD>
{
    c = Conv (x, w1, b1)
    BODY
    y = Conv (r, w2)
}
"""
NORM = ", float[8] g, float[8] b, float[8] m, float[8] v"


POOL = "MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]>"


def net(body: str, constants: str = "") -> onnx.ModelProto:
    proto = build(NET.replace("HEAD", constants).replace("BODY", body))
    for tensor in proto.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(np.square(numpy_helper.to_array(tensor)) + np.float32(0.5), "v"))
    return proto


def edited(proto: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    """The model with constants changed by functions of them."""
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            array = numpy_helper.to_array(tensor).copy()
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name](array), array.dtype), tensor.name))
    return proto


def opened(proto: onnx.ModelProto, folder: Path) -> ChannelDag:
    model = load(saved(proto, folder / "in.onnx"))
    return build_channel_dag(model, observe(model, {}), DEFAULT_RULES)


def without(dag: ChannelDag, name: str, *channels: int) -> tuple[Mask, onnx.ModelProto]:
    """Surgery that removes some channels of a tensor."""
    alive = np.ones(dag.count, bool)
    channel_ids = dag.channel_ids[name].reshape(-1)[list(channels)]
    alive[np.isin(dag.groups, dag.groups[channel_ids])] = False
    return alive, apply_patch(dag.model, plan_patch(dag, alive))


def distance(one: onnx.ModelProto, other: onnx.ModelProto, shape: tuple[int, ...] = (2, 3, 9, 9)) -> float:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    a, b = (run(proto, [{"x": x}])[0][0].astype(float) for proto in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def mended(
    proto: onnx.ModelProto, folder: Path, tensor: str, *channels: int, **how: Any
) -> tuple[DataFreeFit, float, float]:
    """The fit, and the distance from the original before and after it."""
    dag = opened(proto, folder)
    alive, bare = without(dag, tensor, *channels)
    found = fit_without_data(PropagatedMoments(dag), alive, bare, **how)
    onnx.checker.check_model(found.proto, full_check=True)
    return found, distance(proto, bare), distance(proto, found.proto)


def copied(scale: float) -> dict[str, Any]:
    def weight(w: np.ndarray) -> np.ndarray:
        w[6] = scale * w[2]
        return w

    return {"w1": weight, "b1": weight}


@pytest.mark.parametrize(
    ("body", "scale"),
    [
        ("r = Relu (c)", 2.5),
        ("r = LeakyRelu <alpha = 0.1> (c)", 0.5),
        ("r = Identity (c)", -1.5),
        ("r = Sigmoid (c)", 1.0),
        ("q = Relu (c) r = MaxPool <kernel_shape = [1, 1]> (q)", 3.0),
    ],
)
def test_copies_are_merged_exactly(body: str, scale: float, tmp_path: Path) -> None:
    found, before, after = mended(edited(net(body), **copied(scale)), tmp_path, "r", 6)
    assert before > 0.05
    assert after < EXACT
    assert (found.counts, found.assumed) == ({"constants": 0, "means": 0, "merged": 1}, False)


@pytest.mark.parametrize("body", ["r = Relu (c)", f"q = Relu (c) r = {POOL} (q)"])
def test_channels_that_are_no_copies_are_not_merged(body: str, tmp_path: Path) -> None:
    found, _, after = mended(edited(net(body), **copied(-1.5)), tmp_path, "r", 6, assume=False)
    assert found.counts["merged"] == 0
    assert after > 0.05


def test_the_largest_of_turned_values_is_no_copy(tmp_path: Path) -> None:
    body = f"r = {POOL} (c)"
    assert mended(edited(net(body), **copied(-1.5)), tmp_path, "r", 6, assume=False)[0].counts["merged"] == 0
    found, _, after = mended(edited(net(body), **copied(1.5)), tmp_path, "r", 6, assume=False)
    assert found.counts["merged"] == 1
    assert after < EXACT


def test_copies_behind_normalisation_are_merged_with_their_shift(tmp_path: Path) -> None:
    body = "r = BatchNormalization (c, g, b, m, v)"
    found, before, after = mended(edited(net(body, NORM), **copied(2.0)), tmp_path, "r", 6)
    assert before > 0.05
    assert after < EXACT
    assert found.counts["merged"] == 1


def test_constants_are_added_to_the_bias(tmp_path: Path) -> None:
    def still(w: np.ndarray) -> np.ndarray:
        w[4] = 0 if w.ndim > 1 else 3
        return w

    found, before, after = mended(
        edited(net("r = Relu (c)"), w1=still, b1=still), tmp_path, "r", 4, ways=("constants",)
    )
    assert before > 0.05
    assert after < EXACT
    assert found.counts == {"constants": 1, "means": 0, "merged": 0}


@pytest.mark.parametrize("activation", ["Relu", "Identity"])
def test_means_follow_from_normalisation(activation: str, tmp_path: Path) -> None:
    proto = net(f"n = BatchNormalization (c, g, b, m, v) r = {activation} (n)", NORM)
    dag = opened(proto, tmp_path)
    alive, bare = without(dag, "r", 1, 3)
    found = fit_without_data(PropagatedMoments(dag), alive, bare, ways=("means",))
    held = {t.name: numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer}
    spread = np.abs(held["g"]) * np.sqrt(held["v"] / (held["v"] + 1e-5))
    mean = held["b"]
    if activation == "Relu":
        ratio = mean / spread
        normal = np.array([0.5 * (1 + math.erf(r / math.sqrt(2))) for r in ratio])
        mean = mean * normal + spread * np.exp(-np.square(ratio) / 2) / math.sqrt(2 * math.pi)
    wanted = (held["w2"].sum((2, 3)) * mean)[:, [1, 3]].sum(1)
    added = {t.name: numpy_helper.to_array(t) for t in found.proto.graph.initializer}[
        found.proto.graph.node[-1].input[2]
    ]
    np.testing.assert_allclose(added, wanted, rtol=5e-3, atol=1e-3)
    assert found.counts == {"constants": 0, "means": 2, "merged": 0}


def test_a_border_adds_nothing_to_a_mean(tmp_path: Path) -> None:
    """A kernel that overlaps the border at some positions is compensated at the others only."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 3, 4, 1] x) => (float[1, 2, 4, 1] y)
    <float[4, 3, 1, 1] w1, float[4] g, float[4] b, float[4] m, float[4] v, float[2, 4, 3, 1] w2, float[2] b2>
    { c = Conv (x, w1) r = BatchNormalization (c, g, b, m, v) y = Conv <pads = [1, 0, 1, 0]> (r, w2, b2) }"""
    proto = edited(build(text), v=np.square)
    dag = opened(proto, tmp_path)
    alive, bare = without(dag, "r", 2)
    found = fit_without_data(PropagatedMoments(dag), alive, bare, ways=("means",))
    held = {t.name: numpy_helper.to_array(t).astype(float) for t in proto.graph.initializer}
    after = {t.name: numpy_helper.to_array(t).astype(float) for t in found.proto.graph.initializer}
    wanted = held["b2"] + held["b"][2] * (held["w2"][:, 2, :, 0] @ [0.75, 1, 0.75])
    np.testing.assert_allclose(after["b2"], wanted, rtol=1e-4)


def test_no_mean_is_compensated_without_statistics(tmp_path: Path) -> None:
    dag = opened(net("r = Relu (c)"), tmp_path)
    alive, bare = without(dag, "r", 1)
    known = PropagatedMoments(dag)
    for found in (
        fit_without_data(known, alive, bare, ways=("constants", "means")),
        fit_without_data(known, alive, bare, assume=False),
    ):
        assert found.proto.SerializeToString() == bare.SerializeToString()
        assert not any(found.counts.values())
    assert fit_without_data(known, alive, bare).assumed
    assert fit_without_data(known, np.ones(dag.count, bool), dag.model.proto).proto is dag.model.proto


def test_moments_are_those_of_samples() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    covariance, mean = root @ root.T, rng.standard_normal(4)
    drawn = rng.multivariate_normal(mean, covariance, 400_000)
    belief = gaussian_channels(np.arange(4), mean, covariance.copy(), is_known=True)
    np.testing.assert_allclose(belief.covariance(), covariance, rtol=1e-3, atol=1e-3)
    rectified = ChannelMoments(
        channel_ids=belief.channel_ids,
        values=np.maximum(belief.values, 0),
        correlation=belief.correlation,
        is_known=True,
    )
    np.testing.assert_allclose(rectified.mean, np.maximum(drawn, 0).mean(0), rtol=0.01)
    np.testing.assert_allclose(rectified.covariance(), np.cov(np.maximum(drawn, 0).T), rtol=0.05, atol=0.03)


def test_statistics_come_from_normalisation_alone(tmp_path: Path) -> None:
    assert propagate_statistics(PropagatedMoments(opened(net("r = Relu (c)"), tmp_path))) is None
    dag = opened(net("n = BatchNormalization (c, g, b, m, v) r = Relu (n)", NORM), tmp_path)
    known = PropagatedMoments(dag)
    found = known.moments
    held = {t.name: numpy_helper.to_array(t) for t in dag.model.proto.graph.initializer}
    np.testing.assert_allclose(found["c"].mean, held["m"], atol=1e-5)
    np.testing.assert_allclose(found["c"].variance, held["v"], rtol=1e-3)
    np.testing.assert_allclose(found["n"].mean, held["b"], atol=1e-5)
    assert (found["x"].is_known, found["r"].is_known) == (False, True)
    statistics = propagate_statistics(known)
    assert statistics is not None
    assert {name for name, _ in statistics.moments} == {"r"}


@pytest.mark.parametrize(
    "steps", ["n = BatchNormalization (c, g, b, m, v) r = Relu (n)", "a = Conv (x, w1, b1) r = Add (c, a)"]
)
def test_moments_in_order_are_the_same_and_none_is_kept(steps: str, tmp_path: Path) -> None:
    dag = opened(net(steps, NORM if "Batch" in steps else ""), tmp_path)
    wanted = PropagatedMoments(dag).moments
    earlier: list[weakref.ref[ChannelMoments]] = []
    names = []
    for name, moments in PropagatedMoments(dag).moments_in_order(set(wanted)):
        names.append(name)
        np.testing.assert_array_equal(moments.values, wanted[name].values)
        np.testing.assert_array_equal(moments.correlation, wanted[name].correlation)
        earlier.append(weakref.ref(moments))
        del moments
    assert sorted(names) == sorted(wanted)
    assert [one() for one in earlier] == [None] * len(earlier)


def test_a_large_covariance_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((9, 9))
    moments = gaussian_channels(np.arange(9), rng.standard_normal(9), root @ root.T, is_known=True)
    whole = moments.covariance()
    monkeypatch.setattr(gaussian, "ROWS_AT_ONCE", 2)
    np.testing.assert_array_equal(moments.covariance(), whole)


@pytest.mark.parametrize(("shape", "compensated"), [("4", True), ("1, 4", True), ("4, 1", False)])
def test_a_bias_has_one_number_for_each_channel(shape: str, compensated: bool, tmp_path: Path) -> None:
    """One number for each row of a Gemm's product is no bias of channels."""
    proto = build(f"""<ir_version: 8, opset_import: ["" : 17]> net (float[4, 3] x) => (float[4, 4] y)
    <float[3, 4] w, float[{shape}] b> {{ h = Gemm (x, w, b) y = Relu (h) }}""")
    bias = numpy_helper.to_array(proto.graph.initializer[1]).reshape(-1)
    found = PropagatedMoments(opened(proto, tmp_path)).moments["h"].mean
    np.testing.assert_allclose(found, bias if compensated else 0, atol=1e-6)


NORMAL = "n = BatchNormalization (c, g, b, m, v) r = Relu (n)"


def test_auto_ranks_by_path_mass_if_statistics_exist(tmp_path: Path) -> None:
    source = saved(net(NORMAL, NORM), tmp_path / "n.onnx")
    plans = {}
    for method in ("auto", "path-mass", "lean"):
        compress_file(
            source,
            tmp_path / "out.onnx",
            CompressOptions(budget=Budget("kernels", 0.6), method=method, measure=False, align=1),
        )
        plans[method] = (tmp_path / "out.onnx").read_bytes()
    assert plans["auto"] == plans["path-mass"] != plans["lean"]
    plain = saved(net("r = Relu (c)"), tmp_path / "p.onnx")
    refused(tmp_path, "compress", plain, tmp_path / "q.onnx", "--keep", 0.6, "--method", "path-mass", says=("--calib",))


def test_weights_stay_unless_asked_for(tmp_path: Path) -> None:
    source = saved(net(NORMAL, NORM), tmp_path / "n.onnx")
    outs = [tmp_path / f"{k}.onnx" for k in range(3)]
    options = ((), ("--recover", "none"), ("--recover", "auto"))
    rows = [
        called_json("compress", source, out, "--keep", 0.6, "--align", 1, *more)
        for out, more in zip(outs, options, strict=True)
    ]
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()
    assert rows[0]["blind"] is rows[1]["blind"] is None
    assert {row["recovery"] for row in rows} == {None}
    assert rows[2]["blind"]["merged"] > 0
    assert not rows[2]["blind"]["declined"]
    old, new = onnx.load(source), onnx.load(outs[2])
    assert [list(getattr(old.graph, k)) for k in ("input", "output")] == [
        list(getattr(new.graph, k)) for k in ("input", "output")
    ]
    onnx.checker.check_model(new, full_check=True)


def test_a_fit_that_is_worse_on_noise_is_declined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(edited(net("r = Relu (c)"), **copied(2.0)), tmp_path / "n.onnx")
    options = CompressOptions(budget=Budget("kernels", 0.6), measure=False, align=1, recover="auto")
    found = [[0.9, 0.5], [0.9, 0.8], [0.8]]
    monkeypatch.setattr(blind_draft, "output_distances", lambda _, others, feeds: found.pop(0))
    kept = compress_file(source, tmp_path / "a.onnx", options).data_free
    declined = compress_file(source, tmp_path / "b.onnx", options).data_free
    assert kept is not None and declined is not None
    assert (kept.declined, declined.declined) == (False, True)
    assert declined.counts["merged"] <= 1 < kept.counts["merged"]


def test_noise_distinguishes_networks(tmp_path: Path) -> None:
    dag = opened(net("r = Relu (c)"), tmp_path)
    _, bare = without(dag, "r", 0, 1, 2, 3)
    broken = edited(net("r = Relu (c)"), w2=lambda w: w * np.inf)
    feeds = smooth_inputs(dag.model, dag.shapes, 0)
    same, other, worst = output_distances(dag.model, [dag.model.proto, bare, broken], feeds)
    assert same == 0 < other < worst == math.inf
    assert all(abs(float(feed["x"].std()) - 1) < EXACT for feed in feeds)


def test_noise_in_place_of_images_has_their_layout(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[2, {}] x) => (float[2, {}] y) {{ y = Relu (x) }}'
    dags = [opened(build(head.format(shape, shape)), tmp_path) for shape in ("3, 9, 8", "9, 8, 3")]
    first, last = (smooth_inputs(dag.model, dag.shapes, 0, 1)[0]["x"] for dag in dags)
    np.testing.assert_array_equal(np.moveaxis(last, 3, 1), first)


@FEW
@given(models(), st.floats(0.2, 0.9))
def test_random_networks(proto: onnx.ModelProto, keep: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = saved(proto, Path(folder) / "in.onnx")
        options = CompressOptions(budget=Budget("kernels", keep), best_effort=True, recover="auto", align=1)
        result = compress_file(source, Path(folder) / "out.onnx", options)
        new = onnx.load(Path(folder) / "out.onnx")
        onnx.checker.check_model(new, full_check=True)
        assert [v.SerializeToString() for v in new.graph.output] == [v.SerializeToString() for v in proto.graph.output]
        assert result.proof.passed

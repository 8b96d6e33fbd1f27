"""Whole branches beside channels: removed where that is better, kept where it is not, and told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.api.verbs import compress, prove
from leanonnx.commands.compress import branch_removal, timing
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.errors import PlanError
from leanonnx.selection.branch_steps import branch_steps
from leanonnx.surgery.plan import load_plan
from tests.calibrated import deviation, net, normal_feeds
from tests.helpers import called_json, saved
from tests.made_up_times import comparison

INTERFACE = "(float[N,3,8,8] x) => (float[N,6] y)"
CONSTANTS = """float[16,3,3,3] w0, float[16] b0, float[16,16,3,3] wa, float[16] ba, float[16,16,3,3] wb, float[16] bb,
    float[16,16,3,3] wc, float[16] bc, float[16,16,3,3] wd, float[16] bd, float[6,16] w1, float[6] b1"""
BODY = """
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r0 = Relu (c0)
    ca = Conv <pads = [1, 1, 1, 1]> (r0, wa, ba) ra = Relu (ca) cb = Conv <pads = [1, 1, 1, 1]> (ra, wb, bb)
    z = Add (cb, r0) r1 = Relu (z)
    cc = Conv <pads = [1, 1, 1, 1]> (r1, wc, bc) rc = Relu (cc) cd = Conv <pads = [1, 1, 1, 1]> (rc, wd, bd)
    u = Add (r1, cd) r2 = Relu (u)
    p = GlobalAveragePool (r2) f = Flatten (p) y = Gemm <transB = 1> (f, w1, b1)
"""
SAMPLES = 400
FEW = 160


def two_blocks(idle: tuple[str, ...]) -> onnx.ModelProto:
    """Two residual blocks of which some add next to nothing: those whose last weights are named."""
    proto = net(INTERFACE, CONSTANTS, BODY)
    for tensor in proto.graph.initializer:
        if tensor.name in idle:
            array = 0.02 * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The network whose second block is idle, the one whose blocks are both at work, and inputs."""
    place = tmp_path_factory.mktemp("branches")
    saved(two_blocks(("wd", "bd")), place / "idle.onnx")
    saved(two_blocks(()), place / "busy.onnx")
    feeds = normal_feeds(load_dag(place / "busy.onnx"), SAMPLES, 1)
    rows = np.concatenate([feed["x"] for feed in feeds])
    np.savez(place / "x.npz", x=rows[:FEW])
    np.savez(place / "many.npz", x=rows)
    yield place


def test_an_idle_branch_goes_first(folder: Path) -> None:
    calib, given = folder / "x.npz", folder / "idle.onnx"
    short = compress(given, folder / "short.onnx", macs=0.55, calib=calib)
    whole = compress(given, folder / "whole.onnx", macs=0.55, calib=calib, blocks="never")
    assert [branch.tensor for branch in short.report.branches] == ["u"]
    assert not whole.report.branches
    assert short.proof.passed and short.macs.fraction <= 0.55
    assert short.macs.before == whole.macs.before
    names = {node.output[0] for node in short.model.graph.node}
    assert not names & {"cc", "rc", "cd"}
    dag = load_dag(given)
    held = normal_feeds(dag, 40, 5)
    shorter, thinner = (deviation(dag, one.model, held) for one in (short, whole))
    assert shorter < 0.8 * thinner


def test_a_branch_at_work_stays(folder: Path) -> None:
    result = compress(folder / "busy.onnx", folder / "kept.onnx", macs=0.8, calib=folder / "x.npz")
    assert not result.report.branches


def weight_ratio(before: Path, after: Path) -> float:
    """Share of the weights that are left, which stands for the time."""
    sizes = [sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer) for path in (before, after)]
    return sizes[1] / sizes[0]


@pytest.mark.parametrize(("name", "goes"), [("idle", True), ("busy", False)])
def test_under_a_budget_of_time_the_nearer_result_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, goes: bool
) -> None:
    monkeypatch.setattr(timing, "compare_in_subprocess", lambda *given: comparison(weight_ratio(*given[:2])))
    monkeypatch.setattr(timing, "profile_in_subprocess", lambda *_: [()])
    if not goes:  # what is removed by mistake comes back
        monkeypatch.setattr(branch_removal._Search, "_is_better", lambda *_: True)
        steps = partial(map, lambda step: replace(step, channel_rate=np.inf))
        monkeypatch.setattr(branch_removal, "branch_steps", lambda *given: [*steps(branch_steps(*given))])
    result = compress(folder / f"{name}.onnx", folder / "o.onnx", latency=0.55, calib=folder / "x.npz", measure=True)
    assert bool(result.report.branches) == goes
    assert any("all branches were kept" in text for text in result.warnings) != goes
    assert result.proof.passed


@pytest.mark.parametrize("options", [{}, {"calib": "x.npz", "recover": "none"}, {"calib": "x.npz", "effort": "quick"}])
def test_no_branch_goes_without_the_means_to_tell(folder: Path, options: dict[str, str]) -> None:
    given = {name: folder / value if name == "calib" else value for name, value in options.items()}
    assert not compress(folder / "idle.onnx", folder / "plain.onnx", macs=0.55, **given).report.branches


def test_a_removed_branch_is_told(folder: Path) -> None:
    page = folder / "page.html"
    row = called_json(
        *("compress", folder / "idle.onnx", folder / "told.onnx", "--macs", 0.55, "--calib", folder / "x.npz"),
        *("--report", page),
    )
    (branch,) = row["branches"]
    assert branch["tensor"] == "u" and branch["kind"] == "linear" and branch["nodes"] == 3
    assert branch["macs"] == 2 * 16 * 16 * 9 * 64 - 16 * 16 * 64
    assert "Branch replaced by a matrix: the one that ends at" in page.read_text()


def test_a_plan_repeats_it(folder: Path) -> None:
    given, calib, plan = folder / "idle.onnx", folder / "x.npz", folder / "plan.json"
    first = compress(
        given, folder / "a.onnx", macs=0.55, calib=calib, plan_out=plan, plan_weights=folder / "weights.npz"
    )
    assert [(row["operand"], row["join"]) for row in load_plan(plan).removed_branches] == [("cd", "u")]
    again = compress(given, folder / "b.onnx", plan=plan)
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert again.macs.before == first.macs.before
    fitted = compress(given, folder / "c.onnx", plan=plan, calib=calib)
    assert fitted.model.graph.node == first.model.graph.node


def test_a_plan_without_weights_needs_data(folder: Path) -> None:
    given, plan = folder / "idle.onnx", folder / "bare.json"
    compress(given, folder / "d.onnx", macs=0.55, calib=folder / "x.npz", plan_out=plan)
    with pytest.raises(PlanError, match="removes branches"):
        compress(given, folder / "e.onnx", plan=plan)
    row = json.loads(plan.read_text())
    row["removed_branches"][0]["operand"] = "nowhere"
    plan.write_text(json.dumps(row))
    with pytest.raises(PlanError, match="'nowhere', which this model has not"):
        compress(given, folder / "e.onnx", plan=plan, calib=folder / "x.npz")


def test_a_wrong_stand_in_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = branch_removal.shorten

    def wrong(*given: object) -> onnx.ModelProto:
        proto = true(*given)  # type: ignore[arg-type]
        weight = next(t for t in proto.graph.initializer if t.name.startswith("u_weight"))
        array = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(array.swapaxes(0, 1).copy(), weight.name))
        return proto

    monkeypatch.setattr(branch_removal, "shorten", wrong)
    result = compress(folder / "idle.onnx", folder / "safe.onnx", macs=0.55, calib=folder / "x.npz")
    assert not result.report.branches


def test_a_tolerance_is_met_with_less_by_a_network_without_the_branch(folder: Path) -> None:
    given = {"max_deviation": 0.025, "calib": folder / "many.npz", "minimise": "macs"}
    short = compress(folder / "idle.onnx", folder / "s.onnx", **given)
    whole = compress(folder / "idle.onnx", folder / "w.onnx", **given, blocks="never")
    assert [branch.tensor for branch in short.report.branches] == ["u"]
    assert short.macs.after < whole.macs.after
    assert short.report.tolerance is not None and short.report.tolerance.looks[short.report.tolerance.chosen].met


def test_a_plan_with_branches_is_for_compress_alone(folder: Path) -> None:
    plan = folder / "only.json"
    compress(folder / "idle.onnx", folder / "f.onnx", macs=0.55, calib=folder / "x.npz", plan_out=plan)
    with pytest.raises(PlanError, match="removes whole branches"):
        prove(folder / "idle.onnx", folder / "f.onnx", plan)


def test_quantised_branches_stay(folder: Path) -> None:
    proto = two_blocks(("wd", "bd"))
    at = next(k for k, node in enumerate(proto.graph.node) if node.output[0] == "cd")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "step"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(0), "zero"))
    for k, (operator, given, made) in enumerate((("QuantizeLinear", "rc", "q"), ("DequantizeLinear", "q", "rq"))):
        proto.graph.node.insert(at + k, onnx.helper.make_node(operator, [given, "step", "zero"], [made], name=made))
    proto.graph.node[at + 2].input[0] = "rq"
    given = saved(proto, folder / "int8.onnx")
    result = compress(given, folder / "int8_out.onnx", macs=0.55, calib=folder / "x.npz")
    assert "u" not in [branch.tensor for branch in result.report.branches]


@pytest.mark.parametrize("name", ["cc", "rc", "cd"])
def test_a_branch_with_pinned_channels_stays(folder: Path, name: str) -> None:
    result = compress(folder / "idle.onnx", folder / "pinned.onnx", macs=0.6, calib=folder / "x.npz", pin=name)
    assert "u" not in [branch.tensor for branch in result.report.branches]
    assert name in {node.output[0] for node in result.model.graph.node}

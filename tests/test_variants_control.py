"""Branches and loops: tensors that their bodies read are never corrupted, and are pinned with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.rules import advice
from tests.variants import Array, compress, distance, kernels, masked, network, random_feed, run

BODIES = {"If", "Loop", "Scan"}

CONSTANTS = """float[16, 3, 3, 3] w1, float[16] b1, float[20, 16, 3, 3] w2, float[16, 20, 1, 1] w3,
    float[4, 16, 1, 1] w4, float[16, 16, 1, 1] wt, float[16] bt, float[1] half = {0.5}, int64 trips = {3},
    bool yes = {1}"""
FRONT = "a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (a)"
BACK = "e = Conv <pads = [1, 1, 1, 1]> (b, w2) f = Relu (e) g = Conv (f, w3) h = Relu (g) y = Conv (h, w4)"


def controlled(body: str, back: str = BACK) -> onnx.ModelProto:
    """Convolutions before the branch or loop, which leads from ``r`` to ``b``, and after it."""
    return network("(float[N, 3, 8, 8] x, bool on) => (float[N, 4, 8, 8] y)", CONSTANTS, f"{FRONT} {body} {back}")


def branch(then: str, other: str, source: str = "on") -> str:
    return f"""b = If ({source}) <then_branch = t () => (float[n, c, h, w] o) {{ {then} }},
        else_branch = l () => (float[n, c, h, w] o2) {{ {other} }}>"""


RUNS = "runs a subgraph"
READS = "the subgraphs of"
SIZES = [{"N": 1}, {"N": 2}]
LOOP = """b = Loop (trips, yes, r) <
    body = l (int64 i, bool go, float[N, 16, 8, 8] v) => (bool went, float[N, 16, 8, 8] u)
    {{ went = Identity (go) {inner} }}>"""
CASES = {
    "branch reads channels": lambda: controlled(branch("o = Conv (r, wt, bt)", "o2 = Tanh (r)")),
    "branch reads a shared weight": lambda: controlled(
        branch("z = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) o = Sigmoid (z)", "o2 = Tanh (r)")
    ),
    "branch reads a weight alone": lambda: controlled(
        """s = If (on) <then_branch = t () => (float[1, 1, 1, 1] o) { z = Conv (x, w1, b1) o = ReduceMax (z) },
        else_branch = l () => (float[1] o2) { o2 = Identity (half) }> b = Mul (r, s)"""
    ),
    "branch reads nothing that carries channels": lambda: controlled(
        """s = If (on) <then_branch = t () => (float[1] o) { o = Identity (half) },
        else_branch = l () => (float[1] o2) { o2 = Neg (half) }> b = Mul (r, s)"""
    ),
    "branches around a weight": lambda: controlled(
        """s = If (on) <then_branch = t () => (float[16, 16, 1, 1] o) { o = Identity (wt) },
        else_branch = l () => (float[16, 16, 1, 1] o2) { o2 = Neg (wt) }> b = Conv (r, s)"""
    ),
    "loop carries channels": lambda: controlled(LOOP.format(inner="t = Conv (v, wt, bt) u = Tanh (t)")),
    "loop reads channels": lambda: controlled(LOOP.format(inner="t = Sub (r, v) u = Tanh (t)")),
    "loop within a branch": lambda: controlled(
        branch(LOOP.format(inner="t = Conv (v, wt, bt) u = Tanh (t)").replace("b = ", "o = "), "o2 = Tanh (r)")
    ),
    "branch within a loop": lambda: controlled(
        LOOP.format(
            inner="""u = If (on) <then_branch = t () => (float[N, 16, 8, 8] o) { o = Conv (v, wt, bt) },
            else_branch = l2 () => (float[N, 16, 8, 8] o2) { o2 = Relu (r) }>"""
        )
    ),
    "shadowed name in a branch": lambda: controlled(branch("f = Tanh (r) o = Conv (f, wt)", "o2 = Tanh (r)")),
    "scan over rows": lambda: controlled(
        """b = Scan <num_scan_inputs = 1, scan_input_axes = [2], scan_output_axes = [2],
        body = l (float[N, 16, 8] v) => (float[N, 16, 8] u) { u = Tanh (v) }> (r)"""
    ),
    "scan with a state": lambda: controlled(
        """z = ReduceMean <axes = [2], keepdims = 0> (r) q, b = Scan <num_scan_inputs = 1, scan_input_axes = [2],
        scan_output_axes = [2],
        body = l (float[N, 16, 8] s, float[N, 16, 8] v) => (float[N, 16, 8] s2, float[N, 16, 8] u)
        { s2 = Add (s, v) u = Tanh (s2) }> (z, r)"""
    ),
    "branch at the end": lambda: controlled(
        """b = Relu (r)""",
        BACK.replace(
            "y = Conv (h, w4)", branch("o = Conv (h, w4)", "z = Neg (h) o2 = Conv (z, w4)").replace("b = If", "y = If")
        ),
    ),
}


def feeds(proto: onnx.ModelProto) -> list[dict[str, Array]]:
    """Both branches, for one image and for two."""
    return [random_feed(proto, size) | {"on": np.array(on)} for on in (True, False) for size in SIZES]


@pytest.mark.parametrize("name", CASES)
def test_bodies_compute_the_same_as_before(name: str, tmp_path: Path) -> None:
    proto = CASES[name]()
    done = compress(proto, tmp_path, keep=0.85)
    reference = masked(proto, done.tensors)
    for feed in feeds(proto):
        (wanted,), (found,) = run(reference, feed), run(done.target, feed)
        assert distance(wanted, found) < 1e-4
    assert [node for node in done.target.graph.node if node.op_type in BODIES] == [
        node for node in proto.graph.node if node.op_type in BODIES
    ]
    assert any(RUNS in reason or READS in reason for reason in done.pins)
    assert {text for reason, text in done.pins.items() if RUNS in reason or READS in reason} == {
        advice.AVOID_CONTROL_FLOW
    }


@pytest.mark.parametrize("name", CASES)
def test_every_layer_of_the_main_graph_is_counted(name: str, tmp_path: Path) -> None:
    """Layers in bodies are not counted; those before and after are, though their channels may have to stay."""
    proto = CASES[name]()
    done = compress(proto, tmp_path, keep=0.85)
    assert done.result.before.kernels == kernels(proto)
    assert done.result.after.kernels == kernels(done.target)


def test_channels_that_a_body_reads_stay(tmp_path: Path) -> None:
    done = compress(CASES["branch reads channels"](), tmp_path, keep=0.85)
    assert (done.shapes["w1"], done.shapes["wt"]) == ([16, 3, 3, 3], [16, 16, 1, 1])
    assert done.shapes["w3"][0] < 16


def test_weight_that_a_body_shares_stays(tmp_path: Path) -> None:
    """The main graph reads a narrower copy; the branch reads the original weight."""
    done = compress(CASES["branch reads a weight alone"](), tmp_path, keep=0.85)
    assert (done.shapes["w1"], done.shapes["b1"]) == ([16, 3, 3, 3], [16])
    (copy,) = [shape for name, shape in done.shapes.items() if name.startswith("w1_")]
    assert copy[0] < 16


def test_body_without_channels_holds_nothing_back(tmp_path: Path) -> None:
    """A branch that selects a number leaves all channels removable."""
    done = compress(CASES["branch reads nothing that carries channels"](), tmp_path, keep=0.5)
    assert done.shapes["w1"][0] < 16

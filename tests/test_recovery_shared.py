"""Recovery of layers that share one weight: fitted together, over all their uses; or copied, each on its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.effort import EFFORTS, NO_DEADLINE
from leanonnx.numeric import regression
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery import layers, passes
from leanonnx.recovery.recover import RecoveryResult, recover
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select
from tests.calibrated import Array, Feed, analysed, deviation, draft, keep, net, normal_feeds, values
from tests.helpers import called, called_json, saved
from tests.test_recovery import tensors
from tests.test_variants_shared import pyramid, siamese, unrolled

TWO = "(float[N,6] x0, float[N,6] x1) => (float[N,4] y0, float[N,4] y1)"
HEADS = "h0 = Gemm (x0, a0, c0) r0 = Relu (h0) h1 = Gemm (x1, a1, c1) r1 = Relu (h1)"
FIRST = "float[6,12] a0, float[12] c0, float[6,12] a1, float[12] c1"
BODIES = {
    "directly": ("y0 = Gemm (r0, w, b) y1 = Gemm (r1, w, b)", "float[12,4] w, float[4] b"),
    "by Identity": ("v = Identity (w) y0 = Gemm (r0, w, b) y1 = Gemm (r1, v, b)", "float[12,4] w, float[4] b"),
    "by one Transpose": (
        "v = Transpose <perm = [1, 0]> (w) y0 = Gemm (r0, v, b) y1 = Gemm (r1, v, b)",
        "float[4,12] w, float[4] b",
    ),
    "by two Transposes": (
        "v = Transpose <perm = [1, 0]> (w) u = Transpose <perm = [1, 0]> (w) y0 = Gemm (r0, v, b) y1 = Gemm (r1, u, b)",
        "float[4,12] w, float[4] b",
    ),
    "transposed by Gemm": (
        "y0 = Gemm <transB = 1> (r0, w, b) y1 = Gemm <transB = 1> (r1, w, b)",
        "float[4,12] w, float[4] b",
    ),
    "in products with one bias": (
        "m0 = MatMul (r0, w) m1 = MatMul (r1, w) y0 = Add (m0, b) y1 = Add (b, m1)",
        "float[12,4] w, float[4] b",
    ),
}


def joined(body: str, constants: str) -> tuple[ChannelDag, Mask]:
    """Two layers that share a weight, behind two of their own which lose channels."""
    dag = analysed(net(TWO, f"{FIRST}, {constants}", f"{HEADS} {body}"))
    return dag, keep(dag, "h0", range(7))


def refit(dag: ChannelDag, alive: Mask, count: int = 60, batch: int = 1) -> tuple[onnx.ModelProto, RecoveryResult]:
    """The draft of a keep mask, and its recovery."""
    before = draft(dag, alive)
    found = recover(dag, alive, before, normal_feeds(dag, count, 1, batch), normal_feeds(dag, 12, 2, batch))
    onnx.checker.check_model(found.proto, full_check=True)
    return before, found


def least_squares(dag: ChannelDag, proto: onnx.ModelProto, feeds: list[Feed], offsets: Mapping[str, Array]) -> Array:
    """Weight of both uses and the shift of their biases, over the rows of both [13 or 8, 4]."""
    rows = np.concatenate(values(proto, ["r0", "r1"], feeds))
    made = values(dag.model.proto, ["y0", "y1"], feeds)
    wanted = [value - offsets[name] for name, value in zip(offsets, made, strict=True)]
    rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1).astype(np.float64)
    return np.linalg.lstsq(rows, np.concatenate(wanted).astype(np.float64), rcond=None)[0]


@pytest.mark.parametrize("way", BODIES)
def test_the_fit_is_the_least_squares_solution_over_all_uses(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "BETAS", (1e-12,))
    dag, alive = joined(*BODIES[way])
    before, found = refit(dag, alive)
    now = tensors(found.proto)
    assert now.keys() == tensors(before).keys()
    weight = now["w"] if now["w"].shape == (7, 4) else now["w"].T
    zero = np.zeros(4)
    wanted = least_squares(dag, before, normal_feeds(dag, 60, 1), {"y0": zero, "y1": zero})
    assert np.allclose(np.vstack([weight, now["b"]]), wanted, atol=1e-4)
    rows = {layer.name: layer for layer in found.layers if layer.before}
    assert len(rows) == 2 and all(row.after is not None and row.after < row.before for row in rows.values())


@pytest.mark.parametrize("kind", ["none", "of their own", "read elsewhere", "one of two"])
def test_biases_get_the_same_shift(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the layers do not own alone become their own first."""
    monkeypatch.setattr(regression, "BETAS", (1e-12,))
    body, constants = {
        "none": ("y0 = Gemm (r0, w) y1 = Gemm (r1, w)", ""),
        "of their own": ("y0 = Gemm (r0, w, b) y1 = Gemm (r1, w, d)", ", float[4] b, float[4] d"),
        "read elsewhere": ("y0 = Gemm (r0, w, b) z1 = Gemm (r1, w, b) y1 = Add (z1, b)", ", float[4] b"),
        "one of two": ("y0 = Gemm (r0, w, b) y1 = Gemm (r1, w)", ", float[4] b"),
    }[kind]
    dag, alive = joined(body, f"float[12,4] w{constants}")
    before, found = refit(dag, alive)
    old, now = tensors(before), tensors(found.proto)
    nodes = {node.output[0]: node for node in found.proto.graph.node}
    second = "z1" if kind == "read elsewhere" else "y1"
    had = {name: old.get("".join(node.input[2:]), np.zeros(4)) for name, node in nodes_of(before).items()}
    offsets = {"y0": had["y0"], "y1": had[second] + (old["b"] if kind == "read elsewhere" else 0)}
    wanted = least_squares(dag, before, normal_feeds(dag, 60, 1), offsets)
    assert np.allclose(now["w"], wanted[:7], atol=1e-4)
    for name in ("y0", second):
        assert np.allclose(now[nodes[name].input[2]], had[name] + wanted[7], atol=1e-4)
    if kind == "read elsewhere":
        assert np.array_equal(now["b"], old["b"])


def nodes_of(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.output[0]: node for node in proto.graph.node}


def test_layers_that_are_not_fitted_have_a_reason() -> None:
    """A weight read in two directions, one that another node reads, one of which nothing can be removed."""
    for body, constants, reason in (
        ("m = Gemm (r0, w) y0 = Gemm (m, v) n = Gemm (r1, w) y1 = Gemm (n, v)", "float[12,12] w, float[12,4] v", ""),
        (
            "y0 = Gemm (r0, w) m = Gemm (r1, w) n = Gemm <transB = 1> (m, w) y1 = Gemm (n, w)",
            "float[12,4] w",
            layers.OTHER_LAYOUT,
        ),
        ("y0 = Gemm (r0, w) y1 = Gemm <alpha = 2.0> (r1, w)", "float[12,4] w", layers.OTHER_READERS),
        (
            "m0 = Gemm (r0, w) m1 = Gemm (r1, w) n0 = Gemm (m0, f) n1 = Gemm (m1, f) y0 = Add (m0, n0) "
            "y1 = Add (m1, n1)",
            "float[12,4] w, float[4,4] f",
            layers.FIXED,
        ),
    ):
        dag, alive = joined(body, constants)
        before, found = refit(dag, alive)
        reasons = {layer.reason for layer in found.layers} - {"it scales its product"}
        assert reasons == {"", reason}
        if reason == layers.FIXED:
            assert np.array_equal(tensors(before)["f"], tensors(found.proto)["f"])


def judge(dag: ChannelDag, alive: Mask, count: int = 12) -> tuple[float, float, onnx.ModelProto]:
    """Deviations without and with recovery on held-out inputs, by the policy of ``compress``; and the result."""
    feeds, held = normal_feeds(dag, count, 1, 2), normal_feeds(dag, 6, 2, 2)
    before = draft(dag, alive)
    found = passes.recover_in_passes(
        dag,
        alive,
        before,
        lambda: feeds,
        lambda: held,
        lambda proto: deviation(dag, proto, held),
        0,
        lambda *_: None,
        effort=EFFORTS["normal"],
        deadline=NO_DEADLINE,
    )
    return deviation(dag, before, held), deviation(dag, found.proto, held), found.proto


def test_an_unrolled_network() -> None:
    """All steps are fitted, with one weight for each layer; the blur, of which nothing can be removed, stays."""
    dag = analysed(unrolled(3))
    alive = select(dag, SelectionRequest(budget=Budget("kernels", 0.4))).alive
    before, after, proto = judge(dag, alive)
    assert after < 0.5 * before
    old, now = tensors(draft(dag, alive)), tensors(proto)
    assert now.keys() - old.keys() == {f"n{k}_bias_lean1" for k in range(3)}
    assert np.array_equal(old["blur"], now["blur"])
    assert not any(np.array_equal(old[name], now[name]) for name in ("w2", "w3"))


MAKERS = (lambda: unrolled(3), pyramid, lambda: siamese(False), lambda: siamese(True))


@pytest.mark.parametrize("seed", range(len(MAKERS)))
def test_no_worse_than_without_on_held_out_inputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    proto = MAKERS[seed % len(MAKERS)]()
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1 and tensor.name != "blur":
            value = rng.standard_normal(tensor.dims) / np.sqrt(np.prod(tensor.dims[1:]))
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    dag = analysed(proto)
    request = SelectionRequest(budget=Budget("kernels", (0.3, 0.5, 0.7)[seed % 3]), method="random", seed=seed)
    before, after, _ = judge(dag, select(dag, request).alive)
    assert after < before


@pytest.mark.parametrize(
    ("distances", "kept", "runs"), [([3.0, 2.0, 2.5], 1, 3), ([3.0, 4.0], 0, 2), ([3.0, 2.0, 1.0, 0.5], 3, 4)]
)
def test_a_pass_is_kept_only_if_it_helps(
    monkeypatch: pytest.MonkeyPatch, distances: list[float], kept: int, runs: int
) -> None:
    dag, alive = joined(*BODIES["directly"])
    made: list[onnx.ModelProto] = []

    def watched(*args: Any, **more: Any) -> RecoveryResult:
        result = recover(*args, **more)
        made.append(result.proto)
        return result

    monkeypatch.setattr(passes, "recover", watched)
    told, feeds = iter(distances), normal_feeds(dag, 12, 1)
    found = passes.recover_in_passes(
        dag,
        alive,
        draft(dag, alive),
        lambda: feeds,
        lambda: (),
        lambda _: next(told),
        0,
        lambda *_: None,
        effort=EFFORTS["thorough"],
        deadline=NO_DEADLINE,
    )
    assert len(made) == runs
    assert found.proto is made[kept]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An unrolled network and inputs for it."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", d=rng.standard_normal((64, 1, 8, 8)).astype(np.float32))
    return saved(unrolled(3), tmp_path / "model.onnx"), tmp_path / "d.npz"


def weights_of(path: Path) -> list[tuple[int, ...]]:
    return sorted(tuple(t.dims) for t in onnx.load(path).graph.initializer if len(t.dims) > 2)


def test_copies_for_each_use(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    plan = tmp_path / "plan.json"
    one, own = tmp_path / "one.onnx", tmp_path / "own.onnx"
    rows = [called_json("compress", model, one, "--keep", 0.4, "--calib", data)]
    rows.append(called_json("compress", model, own, "--keep", 0.4, "--calib", data, "--unshare", "--plan-out", plan))
    assert [len(weights_of(path)) for path in (one, own)] == [4, 10]
    assert {shape for path in (one, own) for shape in weights_of(path)} == {*weights_of(one)}
    assert rows[0]["unshared"] is None
    assert rows[1]["unshared"]["count"] == 5
    more = own.stat().st_size - one.stat().st_size
    assert 0.5 * more < rows[1]["unshared"]["bytes"] <= more
    assert rows[1]["proof"]["status"] == "passed"
    assert rows[0]["params"]["after"] < rows[1]["params"]["after"]
    reasons = {layer["name"]: layer["reason"] for layer in rows[1]["recovery"]["layers"]}
    assert {reason for name, reason in reasons.items() if name[0] in "ACN"} == {""}
    again = tmp_path / "again.onnx"
    called_json("compress", model, again, "--plan", plan, "--calib", data)
    assert again.read_bytes() == own.read_bytes()


def test_a_budget_of_bytes_counts_the_copies(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    out = tmp_path / "out.onnx"
    called_json("compress", model, out, "--bytes", 0.9, "--calib", data, "--unshare")
    assert out.stat().st_size <= 0.9 * model.stat().st_size
    assert len(weights_of(out)) == 10


def test_the_terminal_says_why_layers_were_not_fitted(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    done = called("compress", model, tmp_path / "out.onnx", "--keep", 0.4, "--calib", data)
    text = " ".join(done.stdout.split())
    assert f"Not fitted: 6 of 15 layers: 6 because {layers.FIXED}" in text
    done = called("compress", model, tmp_path / "out.onnx", "--keep", 0.4, "--calib", data, "--unshare")
    assert "5 constants copied for each reader: " in " ".join(done.stdout.split())


def test_nothing_to_copy(files: tuple[Path, Path], tmp_path: Path) -> None:
    done = called("compress", files[0], tmp_path / "out.onnx", "--exact", "--unshare")
    assert done.returncode == 2
    assert "--unshare has nothing to do with --exact" in " ".join(done.stderr.split())

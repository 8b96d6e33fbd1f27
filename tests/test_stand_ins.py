"""Least-squares stand-ins of branches: what they recover, and what they say that they leave unexplained."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from leanonnx.analysis.branches import Branch, find_branches
from leanonnx.analysis.dag import ChannelDag
from leanonnx.recovery.standins import FittedStandIn, fit_stand_ins
from tests.calibrated import analysed, net, normal_feeds, values

RUNS = 60
ONE = "(float[N,6,8,8] x) => (float[N,6,8,8] y)"
LINEAR_BRANCH = "b = Conv (x, w, c) y = Add (x, b)"
CURVED_BRANCH = "h = Conv <pads = [1, 1, 1, 1]> (x, w3, c) r = Relu (h) b = Conv (r, w, c) y = Add (b, x)"
SHORTCUT = """h = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w3, c) r = Relu (h) b = Conv (r, w, c)
    s = Conv <strides = [2, 2]> (x, v) n = BatchNormalization (s, g, c, m, q) y = Add (b, n)"""
GATE = """p = GlobalAveragePool (x) h = Conv (p, w, c) r = Relu (h) e = Conv (r, v, c) t = Sigmoid (e) y = Mul (x, t)"""
CONSTANTS = "float[6,6,1,1] w, float[6,6,3,3] w3, float[6] c, float[6,6,1,1] v, float[6] g, float[6] m, float[6] q"


def network(body: str, shape: str = "8,8") -> ChannelDag:
    proto = net(ONE.replace("8,8] y", f"{shape}] y"), CONSTANTS, body)
    for tensor in proto.graph.initializer:
        if tensor.name == "q":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.linspace(0.5, 2, 6).astype(np.float32), "q"))
    return analysed(proto)


def fitted(dag: ChannelDag) -> tuple[Branch, FittedStandIn]:
    """The only branch and its stand-in."""
    branches = find_branches(dag.model, dag.shapes)
    ((branch, fit),) = fit_stand_ins(dag, branches, normal_feeds(dag, RUNS, 1, 4), RUNS).items()
    return branch, fit


def test_a_linear_branch_is_recovered() -> None:
    dag = network(LINEAR_BRANCH)
    branch, fit = fitted(dag)
    matrix = np.eye(6) + dag.model.constant("w")[:, :, 0, 0]
    assert branch.kind == "linear" and fit.unexplained.max() < 1e-6
    np.testing.assert_allclose(fit.stand_in.weight, matrix, atol=1e-4)
    np.testing.assert_allclose(fit.stand_in.bias, dag.model.constant("c"), atol=1e-4)


@pytest.mark.parametrize("body", [CURVED_BRANCH, SHORTCUT])
def test_what_is_left_unexplained_is_the_error_on_other_inputs(body: str) -> None:
    dag = network(body, "4,4" if body == SHORTCUT else "8,8")
    branch, fit = fitted(dag)
    names, feeds = [branch.stream, branch.output], normal_feeds(dag, 40, 9, 4)
    stream, joined = (value.astype(np.float64) for value in values(dag.model.proto, names, feeds))
    weight, bias = fit.stand_in.weight, fit.stand_in.bias
    assert weight is not None and bias is not None
    read = stream[:, :, ::2, ::2] if branch.kind == "shortcut" else stream
    made = np.einsum("oi,nihw->nohw", weight.reshape(6, 6), read) + bias[:, None, None]
    axes = (0, 2, 3)
    error = np.square(made - joined).mean(axes) / joined.var(axes)
    assert fit.unexplained.mean() == pytest.approx(error.mean(), rel=0.15)
    assert np.corrcoef(fit.unexplained, error)[0, 1] > 0.9
    assert 0 < error.mean() < 0.9


def test_a_gate_becomes_one_factor_for_each_channel() -> None:
    dag = network(GATE)
    branch, fit = fitted(dag)
    (gate,) = values(dag.model.proto, ["t"], normal_feeds(dag, 10, 9, 4))
    assert branch.kind == "scale" and fit.stand_in.bias is None
    np.testing.assert_allclose(fit.stand_in.weight, gate.mean((0, 2, 3)), atol=0.1)
    assert fit.unexplained.shape == (6,) and fit.unexplained.max() < 0.5

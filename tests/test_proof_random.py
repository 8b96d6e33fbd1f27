"""Random operators in the proof: both sides get the same numbers, whatever nodes were removed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ProofFailed
from leanonnx.proof import sides
from leanonnx.proof.sides import RunTensors
from leanonnx.rules.pointwise import unary
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.sessions import Feed
from leanonnx.selection.metrics import Budget
from tests.helpers import CNN, Options, build, saved
from tests.test_vacuous_proofs import WRONG

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
noisy (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 8, 3, 3] w2, float[8] b2, float[4, 8, 3, 3] w3, float[4] b3,
 float[8, 1, 1] strength, int64[1] zero = {{0}}, int64[1] one = {{1}}, float ratio = {{0.5}}, bool yes = {{1}},
 float[1, 1, 8, 8] fair>
{{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    i1 = Identity (c1)
    r1 = Relu (i1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
    {body}
    r2 = Relu (d)
    y = Conv <pads = [1, 1, 1, 1]> (r2, w3, b3)
}}
"""
ONE = "p = Slice (x, zero, one, one) "
BODIES = {
    "like": ONE + "n = RandomNormalLike (p) m = Mul (n, strength) d = Add (c2, m)",
    "uniform like": ONE + "n = RandomUniformLike <low = 1.0, high = 2.0> (p) m = Mul (n, strength) d = Add (c2, m)",
    "seeded": ONE + "n = RandomNormalLike <seed = 5.0> (p) m = Mul (n, strength) d = Add (c2, m)",
    "of a fixed size": "n = RandomNormal <shape = [1, 1, 8, 8]> () m = Mul (n, strength) d = Add (c2, m)",
    "coin": ONE + "s = Sigmoid (p) n = Bernoulli (s) m = Mul (n, strength) d = Add (c2, m)",
    "renamed": ONE + "n = RandomNormalLike (p) k = Identity (n) m = Mul (k, strength) d = Add (c2, m)",
    "dropout": "d = Dropout (c2, ratio, yes)",
}
CARRYING = "n = RandomNormalLike (c2) d = Add (c2, n)"
"""Noise of a tensor that loses channels; leanonnx has no rule for that, but a user may."""
LIKE: Rules = {**DEFAULT_RULES, ("", "RandomNormalLike"): unary}


def noisy(body: str) -> onnx.ModelProto:
    return build(NETWORK.format(body=body))


@pytest.mark.parametrize("name", BODIES)
def test_right_result_passes_and_a_wrong_rule_does_not(name: str, tmp_path: Path) -> None:
    source = saved(noisy(BODIES[name]), tmp_path / "in.onnx")
    result = compress_file(source, tmp_path / "out.onnx", Options(Budget("kernels", 0.5)))
    assert result.proof.passed
    assert result.after.kernels < result.before.kernels
    with pytest.raises(ProofFailed, match="a rule is wrong"):
        compress_file(source, tmp_path / "wrong.onnx", Options(Budget("kernels", 0.5)), rules=WRONG)


def test_noise_that_loses_channels_is_cut(tmp_path: Path) -> None:
    source = saved(noisy(CARRYING), tmp_path / "in.onnx")
    result = compress_file(source, tmp_path / "out.onnx", Options(Budget("kernels", 0.5)), rules=LIKE)
    assert result.proof.passed
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert shapes["w2"][0] < 8


def noisy_within_a_subgraph() -> onnx.ModelProto:
    """A network with random numbers that cannot be made equal."""
    proto = noisy(ONE + "n = Identity (p) m = Mul (n, strength) d = Add (c2, m)")
    inner = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["p"], ["inner"], "NOISE")],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    place = next(k for k, node in enumerate(proto.graph.node) if node.output[0] == "n")
    branch = helper.make_node("If", ["yes"], ["n"], "BRANCH", then_branch=inner, else_branch=inner)
    proto.graph.node[place].CopyFrom(branch)
    return proto


def test_noise_within_a_subgraph_is_reported(tmp_path: Path) -> None:
    """The message blames the random numbers, and no rule."""
    source = saved(noisy_within_a_subgraph(), tmp_path / "in.onnx")
    with pytest.raises(ProofFailed, match="random numbers that cannot be made equal") as caught:
        compress_file(source, tmp_path / "out.onnx", Options(Budget("kernels", 0.5)), rules=WRONG)
    assert "RandomNormalLike 'NOISE' within If 'BRANCH'" in str(caught.value)
    assert "a rule is wrong" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_outputs_that_differ_without_random_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with custom operators, or where onnxruntime reads memory that nothing wrote: no random operator is blamed."""
    opened, runs = sides.open_side, itertools.count()

    @contextmanager
    def restless(*arguments: Any) -> Iterator[Callable[[Feed], RunTensors]]:
        with opened(*arguments) as once:
            yield lambda feed: [value + np.float32(next(runs)) for value in once(feed)]

    monkeypatch.setattr(sides, "open_side", restless)
    with pytest.raises(ProofFailed, match="differ from one run to the next on the same inputs, and cannot be compared"):
        compress_file(saved(build(CNN), tmp_path / "in.onnx"), tmp_path / "out.onnx", Options(Budget("kernels", 0.5)))
    assert not (tmp_path / "out.onnx").exists()

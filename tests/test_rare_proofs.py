"""Rare cases of the proof: inputs on which the original fails, sizes that hang on a digit, integers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.analysis.teacher import unlike_tensors
from leanonnx.graph.model import load
from leanonnx.proof.compare import ComparedChannels, relative_error
from leanonnx.proof.noise import fix_random_operators
from leanonnx.proof.sides import ProofRun, Sides
from leanonnx.runtime.sessions import RunFailed
from tests.helpers import build, saved
from tests.variants import given, network

WHOLE = ComparedChannels()
"""No channel ids are known."""


def sides(reference: onnx.ModelProto, candidate: onnx.ModelProto, channels: ComparedChannels = WHOLE) -> Sides:
    return Sides(
        original=reference,
        reference=reference,
        candidate=candidate,
        libraries=(),
        channels=channels,
        bound=1e-4,
        rounding=0.02,
        optimise=False,
    )


CUT = """
<ir_version: 8, opset_import: ["" : 17]>
cut (float[4] x) => (float[n] t) <float one = {{1}}, float[4] w = {{1, 2, 3, 4}}>
{{ g = Greater (x, one)  m = Mul (x, w)  c = Compress <axis = 0> (m, g)  t = {} (c) }}
"""
"""Elements above 1, as many as there are."""


@pytest.mark.parametrize(("first", "sound"), [(0.5, True), (1.0, False)])
def test_a_size_that_changes_with_the_last_digit_says_nothing(first: float, sound: bool) -> None:
    """The channels of the other size are not known: the reference is as far from itself as can be."""
    known = ComparedChannels(({"c": np.array([1, 2])},), np.array([True, False, True]))
    candidate = build(CUT.replace("(m, g)", "(x, g)").format("Abs"))
    candidate.graph.node[2].output[0] = "both"
    candidate.graph.node.insert(3, onnx.helper.make_node("Slice", ["both", "from", "to"], ["c"]))
    given(candidate, **{"from": np.array([1]), "to": np.array([2])})
    run = ProofRun(sides(build(CUT.format("Abs")), candidate, known), (), ["c"])
    (table,) = run.compare_tensors([{"x": np.array([first, 2, 0, 3], np.float32)}]).tables
    assert (table.errors > 0.1).any()
    assert table.exceeds_limit is sound
    assert np.isnan(table.limits).all() is not sound


def test_inputs_on_which_the_reference_does_not_run() -> None:
    model = build(CUT.format("Abs"))
    run = ProofRun(sides(model, model), ["t"], [])
    with pytest.raises(RunFailed, match="there are no inputs"):
        run.compare_tensors([])
    wrong = {"x": np.ones(5, np.float32)}
    with pytest.raises(RunFailed, match="x"):
        run.compare_tensors([wrong])
    good = {"x": np.array([0, 2, 3, 4], np.float32)}
    assert run.compare_tensors([wrong, good]).feeds == [good]


NOISY = """
<ir_version: 8, opset_import: ["" : 17]>
noisy (float[1, 4, 3] x) => (float[1, 4, 3] y)
{ n = RandomNormalLike (x)  y = Add (x, n) }
"""
IDS = np.arange(12).reshape(1, 4, 3)


def test_random_numbers_of_channels_that_are_no_block_cannot_be_cut(tmp_path: Path) -> None:
    proto = build(NOISY)
    model = load(saved(proto, tmp_path / "in.onnx"))
    feed = {"x": np.ones((1, 4, 3), np.float32)}
    block = np.zeros(12, bool)
    block[IDS[:, 1:, :2]] = True
    for alive, shape in ((block, (1, 3, 2)), (np.arange(12) > 0, None)):
        known = sides(proto, proto, ComparedChannels(({"n": IDS},), alive))
        with fix_random_operators(model, known) as draws:
            drawn = draws.add_draws(feed)
            (name,) = drawn.keys() - feed.keys()
            assert drawn[name].shape == (1, 4, 3)
            if shape is not None:
                assert draws.sides.candidate_feed(drawn)[name].shape == shape
                continue
            with pytest.raises(RunFailed, match="random numbers of RandomNormalLike 'N' cannot be cut"):
                draws.sides.candidate_feed(drawn)


def test_no_random_numbers_for_inputs_that_do_not_run(tmp_path: Path) -> None:
    proto = build(NOISY)
    with fix_random_operators(load(saved(proto, tmp_path / "in.onnx")), sides(proto, proto)) as draws:
        wrong = {"x": np.ones((1, 4, 2), np.float32)}
        assert draws.add_draws(wrong) is wrong


def test_a_network_of_integers_alone_is_proven_by_its_outputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.integers(0, 9, (3, 6)).astype(np.uint8), "v": rng.integers(0, 9, (6, 2)).astype(np.uint8)}
    proto = given(
        network(
            "(uint8[N, 4, 3] x) => (int32[N, 4, 2] y)",
            "uint8[3, 6] w, uint8[6, 2] v",
            "a = MatMulInteger (x, w) b = Cast <to = 2> (a) y = MatMulInteger (b, v)",
        ),
        **weights,
    )
    source = saved(proto, tmp_path / "in.onnx")
    found = leanonnx.prove(source, source)
    assert (found.status, dict(found.silent)) == ("passed", {})
    still = saved(given(proto, v=np.zeros((6, 2), np.uint8)), tmp_path / "still.onnx")
    assert leanonnx.prove(still, still).status == "vacuous"


def test_relative_error_of_what_is_no_float() -> None:
    ones = np.ones(4, np.float32)
    assert relative_error(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.25
    assert relative_error(ones, np.ones(3, np.float32)) == np.inf
    assert relative_error(ones, 1.5 * ones) == 0.5
    assert relative_error(ones, 1.5 * ones, floor=4.0) == 0.25


def test_a_node_with_other_outputs_is_not_the_teachers(tmp_path: Path) -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        pooled (float[1, 2, 4, 4] x) => ({}) <float[2, 2, 1, 1] w, float[2, 2, 1, 1] v>
        {{ a = Conv (x, w)  {} = MaxPool <kernel_shape = [2, 2]> (a)  y = Conv (p, v) }}
    """
    short, long = ("float[1, 2, 3, 3] y", "p"), ("float[1, 2, 3, 3] y, int64[1, 2, 3, 3] i", "p, i")
    plain, indexed = (
        load(saved(build(text.format(*words)), tmp_path / f"{len(words[1])}.onnx")) for words in (short, long)
    )
    assert unlike_tensors(plain, plain) == set()
    assert unlike_tensors(plain, indexed) == {"p"}

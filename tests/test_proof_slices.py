"""One norm for a whole tensor hides its small parts: every channel is measured on its own scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ProofFailed
from leanonnx.proof import compare
from leanonnx.proof.compare import WHOLE_TENSOR, ComparedChannels, Profile, slice_distances, slice_scales
from leanonnx.proof.sides import NOISE_FACTOR, WIDEST_BOUND, ProofRun
from leanonnx.rules.call import Call, Effect
from leanonnx.rules.convolution import conv
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.selection.metrics import Budget
from tests.helpers import Options, build, saved

DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[N, 3, 8, 8] x) => (float[N, 9, 64] y)
<float[8, 3, 3, 3] w0, float[8] b0, float[8, 8, 3, 3] w1, float[8] b1, float[4, 8, 1, 1] w2, float[8, 8, 3, 3] w3,
 float[8] b3, float[5, 8, 1, 1] w4, float[4, 1] pixels = {300, 200, 400, 250}, float prior = {5},
 int64[3] four = {0, 4, 64}, int64[3] five = {0, 5, 64}>
{
    trunk = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    t = Relu (trunk)
    box = Conv <pads = [1, 1, 1, 1]> (t, w1, b1)
    b = Relu (box)
    boxes = Conv (b, w2)
    cls = Conv <pads = [1, 1, 1, 1]> (t, w3, b3)
    c = Relu (cls)
    classes = Conv (c, w4)
    q = Reshape (boxes, four)
    e = Softplus (q)
    large = Mul (e, pixels)
    r = Reshape (classes, five)
    o = Sub (r, prior)
    s = Sigmoid (o)
    y = Concat <axis = 1> (large, s)
}
"""
"""Boxes of some hundred pixels and class scores of a hundredth in one tensor."""
OFFSET = """
<ir_version: 8, opset_import: ["" : 17]>
offset (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[4, 8, 3, 3] w2, float high = {2000}, float small = {0.1}>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    m = Mul (c2, small)
    y = Add (m, high)
}
"""


def rolled_at(*names: str) -> Rules:
    """A wrong rule for some convolutions: their bias is sliced a channel off."""

    def wrong(call: Call) -> Effect:
        effect = conv(call)
        if call.name not in names:
            return effect
        slices = [replace(s, factors=(np.roll(s.factors[0], 1),)) if s.slot == 2 else s for s in effect.slices]
        return replace(effect, slices=tuple(slices))

    return {**DEFAULT_RULES, ("", "Conv"): wrong}


def halved(text: str, folder: Path, rules: Rules = DEFAULT_RULES) -> bool:
    """True if half of a network is proven."""
    source = saved(build(text), folder / "in.onnx")
    try:
        return compress_file(source, folder / "out.onnx", Options(Budget("kernels", 0.5)), rules=rules).proof.passed
    except ProofFailed as error:
        assert "a rule is wrong" in str(error)
        return False


@pytest.mark.parametrize(("text", "node"), [(DETECTOR, "CLS"), (OFFSET, "C1")], ids=["small part", "offset"])
def test_wrong_rule_for_a_small_part_is_refused(text: str, node: str, tmp_path: Path) -> None:
    assert halved(text, tmp_path)
    assert not halved(text, tmp_path, rolled_at(node))


def test_one_norm_for_all_would_miss_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: a proof with one norm for each tensor lets the wrong class branch pass."""
    monkeypatch.setattr(compare.ComparedChannels, "slices", lambda *_: WHOLE_TENSOR)
    assert halved(DETECTOR, tmp_path, rolled_at("CLS"))


def test_norm_that_includes_the_offset_would_miss_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: a scale with the constant offset in it lets a wrong bias pass."""
    monkeypatch.setattr(compare, "MIN_SPREAD_ELEMENTS", 1 << 40)
    assert halved(OFFSET, tmp_path, rolled_at("C1"))


CHANNELS = ComparedChannels([{"y": np.array([[3, 4, 4, 9]])}])


def test_slices_are_the_labels() -> None:
    """Positions of one channel id form one slice, wherever they are."""
    value = np.array([[1.0, 2.0, 4.0, 8.0], [3.0, 2.0, 4.0, 0.0]])
    slices = CHANNELS.slices("y", value.shape)
    np.testing.assert_allclose(slices.means(value), [3, 2, 3, 4])
    other = value + np.array([0, 0, 0, 2])
    np.testing.assert_allclose(slice_distances(value, other, slices), [1, 0, 0, 2])
    assert CHANNELS.slices("y", (2, 5)) is WHOLE_TENSOR
    assert CHANNELS.slices("z", value.shape) is WHOLE_TENSOR


def test_survivors_are_the_living_positions() -> None:
    alive = np.ones(10, bool)
    alive[4] = False
    channels = replace(CHANNELS, alive=alive)
    value = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(channels.kept_part("y", value), value[:, [0, 3]])
    assert channels.kept_part("y", np.zeros((2, 5))) is None
    assert channels.slices("y", value.shape).count == 2


def test_scale_of_a_number_near_zero_is_that_of_its_neighbours() -> None:
    """One logit that happens to be nearly nothing on one input is no small channel."""
    rows = [np.array([[1.0, 1e-9, 3.0, 2.0]]), np.array([[1.0, -2.0, 3.0, 2.0]])]
    slices = CHANNELS.slices("y", (1, 4))
    scale = slice_scales([Profile.of(row, slices) for row in rows], rounding=0.02)
    assert scale.shape == (2, 4)
    assert scale.min() > 0.1


def test_non_finite_numbers_count_where_they_differ() -> None:
    value = np.array([[1.0, np.nan, np.inf, 2.0]])
    slices = CHANNELS.slices("y", value.shape)
    assert slice_distances(value, value.copy(), slices).max() == 0
    assert np.isinf(slice_distances(value, np.nan_to_num(value), slices)).all()
    assert np.isinf(slice_distances(value, value[:, :3], slices)).all()


@pytest.mark.parametrize(("numbers", "allowed"), [(1, 4e-4), (100, 1e-5)])
def test_slices_of_one_number_are_allowed_what_the_noisiest_of_them_moves(numbers: int, allowed: float) -> None:
    """By chance one number moves less than rounding could move it; over many numbers that evens out."""
    run = ProofRun.__new__(ProofRun)
    run.sides = SimpleNamespace(rounding=0.0)  # type: ignore[assignment]
    own = np.array([2e-4, 0.0, 1e-5, 4e-4])
    run._gap = lambda *_: own.copy()  # type: ignore[method-assign]
    value = np.zeros((3, numbers), np.float32)
    noise = run._noise(0, value, [value], None, 0)  # type: ignore[arg-type]
    np.testing.assert_allclose(noise, NOISE_FACTOR * np.maximum(own, [0, allowed, allowed, allowed]))


def test_the_noisiest_slice_does_not_lift_the_others_above_the_widest_bound() -> None:
    run = ProofRun.__new__(ProofRun)
    run.sides = SimpleNamespace(rounding=0.0)  # type: ignore[assignment]
    run._gap = lambda *_: np.array([1e-4, 0.0, 0.5])  # type: ignore[method-assign]
    noise = run._noise(0, np.zeros(2, np.float32), [np.zeros(2)], None, 0)  # type: ignore[arg-type]
    assert noise[1] == pytest.approx(WIDEST_BOUND) and noise[2] > WIDEST_BOUND

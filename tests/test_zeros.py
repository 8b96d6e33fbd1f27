"""Channels that are zero once their layer outputs zeros: sums and norms can lose these, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanonnx.rules import advice
from tests.test_variants_blocks import ANY, TRIED, block
from tests.variants import assert_pins, checked

CONSTANTS = """float[12] ga, float[12] be, float[12] mu, float[12] va = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
float[12, 1, 1] slope, float[12, 1, 1] shift, float[12, 12, 1, 1] w4, float low = {0}, float high = {6},
float one = {1}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, int64[1] over = {1}, float[4] by = {1, 1, 2, 2}"""
KEPT = {
    "rectifier": "z = Identity (c)",
    "normalised by fixed statistics": "z = BatchNormalization (c, ga, be, mu, va)",
    "shifted by a constant for each channel": "z = Add (c, shift)",
    "residual": "r = Conv (c, w4) z = Add (r, c)",
    "extreme of two": "r = Conv (c, w4) z = Max (r, c)",
    "between bounds": "z = Clip (c, low, high)",
    "other slopes": "z = PRelu (c, slope)",
    "square": "z = Pow (c, two)",
    "by a gate": "r = Conv (c, w4) g = Sigmoid (r) z = Mul (c, g)",
    "by its pixels": "p = GlobalAveragePool (c) q = Add (p, shift) z = Mul (q, c)",
    "by a number": "z = Div (c, two)",
    "bordered": "z = Pad (c, pads)",
    "enlarged": 'z = Resize <mode = "linear"> (c, , by)',
    "with others": "r = Conv (c, w4) z = Concat <axis = 1> (c, r)",
    "turned": "z = Transpose <perm = [0, 1, 3, 2]> (c)",
}
"""Paths from a layer to a sum over channels that can lose them."""
LOST = {
    "gate": "z = Sigmoid (c)",
    "exponential": "z = Exp (c)",
    "shifted by a number": "z = Add (c, one)",
    "less the mean": "m = ReduceMean <axes = [2, 3]> (x) t = ReduceMean <axes = [1]> (m) z = Sub (c, t)",
    "above a bound": "z = Clip (c, one, high)",
    "reciprocal": "r = Add (c, one) z = Div (two, r)",
    "bordered by ones": "z = Pad (c, pads, one)",
    "number to a power": "z = Pow (two, c)",
    "then rectified": "r = Sigmoid (c) z = Relu (r)",
    "one of two": "r = Sigmoid (c) z = Add (c, r)",
}
"""Paths on which a removed channel would not be zero."""
NOT_ZERO = {"it reduces over the channels, which would not be zero there": advice.NO_EXACT_FORM}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("reduction", ["ReduceMean <axes = [1]> (z)", "ReduceL2 <axes = [1]> (z)"])
def test_channels_that_would_be_zero_are_removed(name: str, reduction: str, tmp_path: Path) -> None:
    proto = block(f"{KEPT[name]} n = {reduction} d = Add (z, n)", CONSTANTS, read=24 if "Concat" in KEPT[name] else 12)
    done = checked(proto, tmp_path, ANY, zeroed=True, keep=0.4, shapes=TRIED)
    assert_pins(done, {})
    assert done.shapes["w1"][0] < 12


@pytest.mark.parametrize("name", LOST)
def test_channels_that_would_not_be_zero_stay(name: str, tmp_path: Path) -> None:
    proto = block(f"{LOST[name]} n = ReduceMean <axes = [1]> (z) d = Add (z, n)", CONSTANTS)
    done = checked(proto, tmp_path, ANY, zeroed=True, keep=0.6, shapes=TRIED)
    assert_pins(done, NOT_ZERO)
    assert done.shapes["w1"][0] == 12

"""Smooth synthetic noise as a substitute for images, to test weight changes that rest on assumptions.

Noise does not show that a change is good, but it reveals a bad one: an error in one layer grows in the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leanonnx.data.images import IMAGE_BATCH_RANK, image_axes
from leanonnx.graph.formats import HALF_TYPES, Source, convert_feed, convert_to_float32, float_types, is_float, stand_in
from leanonnx.graph.model import Model
from leanonnx.inputs.random import random_inputs
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, RunFailed, run

NOISE_DRAWS = 4
"""Number of inputs drawn."""
CHANNELS_LAST_AXES = (1, 2)
"""Axes of height and width in channels-last layout."""
NOISE_SCALES = (1, 2, 4, 8, 16, 32)
"""Sides of the squares of the noise, in pixels."""
MIN_DEVIATION = 1e-30


def smooth_inputs(model: Model, shapes: dict[str, tuple[int, ...]], seed: int, draws: int = NOISE_DRAWS) -> list[Feed]:
    """Random inputs; images are sums of squares of all sizes, correlated between their colours."""
    feeds = [random_inputs(model, shapes, seed + draw)[0] for draw in range(draws)]
    rng = np.random.default_rng(seed)
    return [{name: _smooth(value, rng) for name, value in feed.items()} for feed in feeds]


def _smooth(value: Array, rng: np.random.Generator) -> Array:
    """Replace an image by smooth noise; any float input of rank 4 counts as an image [n, channels, height, width]."""
    if value.ndim != IMAGE_BATCH_RANK or not is_float(value):
        return value
    last = image_axes(value.shape) == CHANNELS_LAST_AXES
    count, channels, height, width = np.moveaxis(value, 3, 1).shape if last else value.shape
    total = np.zeros((count, channels, height, width))
    for scale in NOISE_SCALES:
        squares = -(-height // scale), -(-width // scale)
        part = rng.standard_normal((count, channels, *squares)) + rng.standard_normal((count, 1, *squares))
        total += np.kron(part, np.ones((1, 1, scale, scale)))[:, :, :height, :width]
    noise = (total / max(float(total.std()), MIN_DEVIATION)).astype(value.dtype)
    return np.ascontiguousarray(np.moveaxis(noise, 1, 3)) if last else noise


def output_distances(model: Model, others: Sequence[Source], feeds: Sequence[Feed]) -> list[float]:
    """Mean relative distance of the outputs of each network from the original's; infinite if it cannot be run."""
    halves = float_types(model.proto) & HALF_TYPES
    feeds = [convert_feed(feed, halves) for feed in feeds]
    wanted = run(convert_to_float32(model.proto, halves), feeds, libraries=model.libraries)
    results = []
    for other in others:
        try:
            outputs = run(stand_in(other, halves), feeds, libraries=model.libraries)
        except RunFailed:
            results.append(float("inf"))
        else:
            results.append(_relative_distance(wanted, outputs))
    return results


def _relative_distance(wanted: list[list[Array]], computed: list[list[Array]]) -> float:
    shares = []
    for output in range(len(wanted[0])):
        one, other = (
            np.concatenate([np.asarray(run_[output], np.float64).reshape(-1) for run_ in side])
            for side in (wanted, computed)
        )
        if one.shape != other.shape or not np.isfinite(other).all():
            return float("inf")
        shares.append(float(np.linalg.norm(one - other) / max(float(np.linalg.norm(one)), MIN_DEVIATION)))
    return float(np.mean(shares)) if shares else 0.0

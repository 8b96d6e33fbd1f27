"""Weights as integers: scales of output channels, and rounding that the remaining weights make up for.

Kernels [G, O, K] have G conv groups, O outputs each and K = inputs × taps columns, the layout of
``KernelBlock.kernels`` with the last two axes joined.  An output of the layer is the product of a row with an input
patch, so that an error E [O, K] of the weights costs tr(E H Eᵀ), where H [K, K] is the mean of x xᵀ over patches x:
their second moment, or their covariance where a bias takes up the mean.

``round_compensated`` rounds one column after the other and corrects each by the errors made so far.  With the factor
H = R Rᵀ, R upper triangular, tr(E H Eᵀ) = Σⱼ (Eⱼ Rⱼⱼ + Σ over k < j of Eₖ Rₖⱼ)²: column j is rounded where its own term
is least.  It is the rounding of GPTQ (Frantar et al. 2023, arXiv 2210.17323; OBQ with one order for all rows), which
updates the remaining columns by the Cholesky factor of H⁻¹, without the inverse.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Array, Floats, Ints

Int8s = NDArray[np.int8]
ColumnOrder = Literal["diagonal", "natural"]

LARGEST_INTEGERS = {8: 127, 7: 64}
"""Largest magnitude of a symmetric signed weight by its bits.

With 7 bits a sum of two products with uint8 activations fits in 16 bits, which processors without VNNI need; 64 is the
bound of onnxruntime's ``reduce_range``.
"""
CLIPPING_FACTORS = tuple(1 - step / 64 for step in range(33))
"""Shares of the largest weight of a channel that are tried as the largest representable one."""
DAMPING = 0.01
"""Share of the mean diagonal of H that is added to its diagonal."""
DAMPING_GROWTH = 10.0
"""Factor of the damping from one attempt to the next, where H is not positive definite."""
SWEEPS = 2
"""Number of times that all integers are reconsidered."""
COLUMNS_PER_BLOCK = 64
"""Number of columns after which the corrections of later columns are computed by a matrix product."""
FLOATS_PER_SEARCH = 1 << 22
"""Number of weights that are rounded at a time in a search for scales."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Lower bound of scales, which files store in single precision."""


def channel_scales(
    weights: Array, bits: int = 8, importance: Array | None = None, factors: tuple[float, ...] = CLIPPING_FACTORS
) -> Floats:
    """Scales of output channels [G, O] whose nearest integers have the least squared error.

    O(factors · G · O · K).

    Args:
        weights: kernels [G, O, K].
        bits: 8 or 7.
        importance: weights of the squared errors of columns [G, K], the diagonal of H; None for equal ones.
        factors: shares of the largest weight that are tried; of equal errors the first wins.

    Returns:
        The scales; 1 for channels of zeros.
    """
    wide = np.asarray(weights, np.float64)
    limit = LARGEST_INTEGERS[bits]
    peaks = np.abs(wide).max(2)
    cost = np.ones((wide.shape[0], wide.shape[2])) if importance is None else np.maximum(importance, 0)
    cost = np.where(cost.any(1, keepdims=True), cost, 1.0)
    best = np.full(peaks.shape, np.inf)
    scales: Floats = np.ones(peaks.shape)
    for factor in factors:
        tried = np.where(peaks > 0, np.maximum(peaks * factor / limit, SMALLEST_SCALE), 1.0)
        tried = tried.astype(np.float32).astype(np.float64)
        errors = _weighted_squares(wide, tried, limit, cost)
        better = errors < best
        best = np.where(better, errors, best)
        scales[better] = tried[better]
    return np.asarray(scales)


def _weighted_squares(weights: Floats, scales: Floats, limit: int, cost: Floats) -> Floats:
    """Weighted squared error of the nearest integers, by channel [G, O]."""
    result = np.empty(scales.shape)
    rows = max(1, FLOATS_PER_SEARCH // max(weights.shape[2], 1))
    for group, (kernel, scale) in enumerate(zip(weights, scales, strict=True)):
        for start in range(0, len(kernel), rows):
            part, step = kernel[start : start + rows], scale[start : start + rows, None]
            error = part - step * np.clip(np.rint(part / step), -limit, limit)
            result[group, start : start + rows] = np.square(error) @ cost[group]
    return result


def round_nearest(weights: Array, scales: Array, bits: int = 8) -> Int8s:
    """The nearest integers [G, O, K] of kernels with scales [G, O]."""
    limit = LARGEST_INTEGERS[bits]
    scaled = np.asarray(weights, np.float64) / np.asarray(scales, np.float64)[:, :, None]
    return np.asarray(np.clip(np.rint(scaled), -limit, limit).astype(np.int8))


def rounding_errors(weights: Array, integers: Array, scales: Array, moment: Array) -> Floats:
    """Mean squared error that rounding causes in each output [G, O]: the diagonal of E H Eᵀ."""
    error = np.asarray(weights, np.float64) - np.asarray(scales, np.float64)[:, :, None] * integers
    return np.asarray(np.maximum(np.einsum("gok,gok->go", error @ np.asarray(moment, np.float64), error), 0))


def round_compensated(
    weights: Array,
    moment: Array,
    scales: Array,
    bits: int = 8,
    *,
    order: ColumnOrder = "diagonal",
    damping: float = DAMPING,
    sweeps: int = SWEEPS,
) -> Int8s:
    """Integers [G, O, K] such that each column makes up for the errors of those before it, as far as H allows.

    Then each integer in turn is set to the best one for the others.  A row that the nearest integers serve better gets
    those, so that no output has a larger error than with them.
    O(G · (K³ + sweeps · O · K²)) multiply-adds.

    Args:
        weights: kernels [G, O, K].
        moment: H [G, K, K], second moment or covariance of the input patches.
        scales: one per output channel [G, O].
        bits: 8 or 7.
        order: columns by falling diagonal of H, or as they are.
        damping: share of the mean diagonal of H that is added to its diagonal, except for the last choice.
        sweeps: number of times that all integers are reconsidered.

    Raises:
        ValueError: shapes that disagree, a scale that is not positive, numbers that are not finite.
    """
    wide, square, steps = (np.asarray(each, np.float64) for each in (weights, moment, scales))
    _check(wide, square, steps)
    limit = LARGEST_INTEGERS[bits]
    nearest = round_nearest(wide, steps, bits)
    result = np.empty_like(nearest)
    for group, (kernel, second, step) in enumerate(zip(wide, square, steps, strict=True)):
        columns = _column_order(second, order)
        target = kernel[:, columns] / step[:, None]
        damped, factor = _damped(second[np.ix_(columns, columns)], damping)
        integers = _round_columns(target, factor, limit)
        for _ in range(sweeps):
            _improve(target, damped, integers, limit)
        result[group][:, columns] = integers
    worse = rounding_errors(wide, result, steps, square) >= rounding_errors(wide, nearest, steps, square)
    result[worse] = nearest[worse]
    return result


def _check(weights: Floats, moment: Floats, scales: Floats) -> None:
    groups, outputs, columns = weights.shape if weights.ndim == 3 else (-1, -1, -1)
    if groups < 0 or moment.shape != (groups, columns, columns) or scales.shape != (groups, outputs):
        shapes = [array.shape for array in (weights, moment, scales)]
        raise ValueError(f"weights, moment and scales {shapes}, expected [G, O, K], [G, K, K], [G, O]")
    if not all(np.isfinite(array).all() for array in (weights, moment, scales)) or (scales <= 0).any():
        raise ValueError("weights, moment and scales must be finite, and scales positive")


def _column_order(moment: Floats, order: ColumnOrder) -> Ints:
    """Columns in the order in which they are rounded [K]; equal ones stay as they are."""
    if order == "natural":
        return np.arange(len(moment))
    return np.argsort(-np.diag(moment), kind="stable")


def _damped(moment: Floats, damping: float) -> tuple[Floats, Floats]:
    """H + λ I, and R [K, K], upper triangular, with R Rᵀ = H + λ I; λ grows until there is one."""
    eye = np.eye(len(moment))
    mean = float(np.diag(moment).mean()) if len(moment) else 0.0
    if mean <= 0:
        return eye, eye
    share = damping
    while True:
        damped = moment + share * mean * eye
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            share = max(share, DAMPING) * DAMPING_GROWTH
        else:
            return damped, np.asarray(lower[::-1, ::-1])


def _round_columns(target: Floats, factor: Floats, limit: int) -> Floats:
    """Integers [O, K] for weights in units of their scales, column by column."""
    size = len(factor)
    shares = factor / np.diag(factor)
    integers, errors = np.empty_like(target), np.zeros_like(target)
    for start in range(0, size, COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, size)
        wanted = target[:, start:stop] + errors[:, :start] @ shares[:start, start:stop]
        for column in range(start, stop):
            value = wanted[:, column - start] + errors[:, start:column] @ shares[start:column, column]
            integers[:, column] = np.clip(np.rint(value), -limit, limit)
            errors[:, column] = target[:, column] - integers[:, column]
    return integers


def _improve(target: Floats, moment: Floats, integers: Floats, limit: int) -> None:
    """Set each integer in turn to the best one for the others; changes ``integers`` [O, K], never to a larger error."""
    diagonal = np.diag(moment)
    errors = target - integers
    for start in range(0, len(diagonal), COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, len(diagonal))
        slopes = errors @ moment[:, start:stop]
        for column in range(start, stop):
            best = np.rint(integers[:, column] + slopes[:, column - start] / diagonal[column])
            change = integers[:, column] - np.clip(best, -limit, limit)
            integers[:, column] -= change
            errors[:, column] += change
            slopes += change[:, None] * moment[column, start:stop]

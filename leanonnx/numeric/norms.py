"""Operator norms of convolution kernels.

The norm of a kernel is its largest singular value as a linear map between images: circular cross-correlation on an
``N_1 x ... x N_d`` image, then subsampling by the strides. The Fourier basis diagonalises it (Sedghi, Gupta and Long
2019, arXiv 1805.10408): with ``F`` the transform of the kernel and ``s`` the strides,

    norm^2 = max over low frequencies j of  1/prod(s) * sum over the prod(s) aliases m of  |F(j + m N/s)|^2.

``|F|^2`` is the transform of the kernel's autocorrelation ``r``, and the sum over aliases keeps just the lags that are
multiples of the stride, so that with dilations ``D``

    norm^2 = max over j of  sum over lags t with s | D t of  r(t) * cos(2 pi j . D t / N).

Since ``r`` is even, half of the lags and half of the frequencies suffice. Small kernels use this real form, with one
matrix product for a whole batch. Large ones (more than ``MAX_LAGS`` lags), and those that wrap around the image, where
taps can cancel and squares would lose digits, use the FFT of their polyphase parts.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, gcd, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Float32s, Ints

FloatingArray = NDArray[np.floating[Any]]
IntTuple = tuple[int, ...]

OVERSAMPLING = 8
"""Frequencies per tap and axis if the image size is not given."""
MAX_LAGS = 256
"""Number of distinct lags above which the FFT is faster than the matrix product."""
MAX_FREQUENCIES = 1 << 12
"""Number of frequencies whose cosines are in memory at a time."""
MAX_TILE_ELEMENTS = 1 << 19
"""Maximum number of elements of a temporary array; a few of them exist at a time."""
KERNELS_PER_PRODUCT = 128
"""Number of kernels in one matrix product."""
MACS_PER_PRODUCT = 1 << 18
"""Multiply-adds of one matrix product, small enough that BLAS uses one thread: with such short inner dimensions a
second thread costs more than it gains."""


def kernel_norms(
    kernels: FloatingArray,
    *,
    strides: Sequence[int],
    dilations: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
) -> Float32s:
    """Spectral norm of every kernel as a linear map between images.

    A transposed convolution is the adjoint of a convolution with the same kernel, strides and dilations, so it has
    the same norms.

    Args:
        kernels: float[*batch, *k], with as many spatial axes ``k`` as there are strides: 0 (scalars, whose norm is
            ``|w|``) to 3.
        strides: int[d], each >= 1.
        dilations: int[d], each >= 1; ``None`` means 1.
        size: int[d], pixels of the image per axis, a multiple of the stride: the result is exact for the circular
            operator of this size. ``None`` uses a dense set of frequencies, at least ``OVERSAMPLING * k`` per axis.
            On such a set a dilation only permutes the frequencies, except for the factor that it shares with the
            stride, which separates the aliases and is divided out of the stride.

    Returns:
        float32[*batch], in units of output over input, relative accuracy 1e-5 (relative to the weights' 2-norm if the
        kernel wraps around the image and its taps cancel). NaN or infinity for a kernel with a weight that is not
        finite.

    Raises:
        ValueError: ranks that disagree, a stride or dilation below 1, a size that is not a multiple of its stride.
    """
    steps, gaps = tuple(strides), (1,) * len(strides) if dilations is None else tuple(dilations)
    weights = np.asarray(kernels)
    _check(weights.shape, steps, gaps, None if size is None else tuple(size))
    split = weights.ndim - len(steps)
    batch, extents = weights.shape[:split], weights.shape[split:]
    if prod(extents) == 1:
        return np.abs(weights).astype(np.float32).reshape(batch)
    if size is None:
        steps, gaps = tuple(step // gcd(step, gap) for step, gap in zip(steps, gaps, strict=True)), (1,) * len(steps)
        size = tuple(map(_dense_size, extents, steps))
    lags = _lags(extents, steps, gaps)
    flat = weights.reshape(prod(batch), *extents)
    wraps = any((k - 1) * gap >= n for k, gap, n in zip(extents, gaps, size, strict=True))
    if wraps or len(lags) > MAX_LAGS:
        return _by_transform(flat, steps, gaps, tuple(size)).reshape(batch)
    return _by_lags(flat, lags, steps, gaps, tuple(size)).reshape(batch)


def _check(shape: IntTuple, strides: IntTuple, gaps: IntTuple, size: IntTuple | None) -> None:
    rank = len(strides)
    if rank > 3 or len(shape) < rank or len(gaps) != rank or (size is not None and len(size) != rank):
        raise ValueError(f"kernels {shape}, strides {strides}, dilations {gaps}, size {size}: ranks disagree (0 to 3)")
    if min((*strides, *gaps), default=1) < 1:
        raise ValueError(f"strides {strides} and dilations {gaps} must be at least 1")
    if 0 in shape[len(shape) - rank :]:
        raise ValueError(f"kernels {shape} have an empty spatial axis")
    if size is not None and any(n < 1 or n % step for n, step in zip(size, strides, strict=True)):
        raise ValueError(f"size {size} must be a positive multiple of the strides {strides}")


def _dense_size(extent: int, stride: int) -> int:
    """Smallest size >= OVERSAMPLING * extent with an even number of low frequencies (zero and Nyquist)."""
    return stride if extent == 1 else 2 * stride * ceil(OVERSAMPLING * extent / (2 * stride))


def _lags(extents: IntTuple, strides: IntTuple, gaps: IntTuple) -> list[IntTuple]:
    """Offsets between two taps that remain in the sum over aliases, one of each pair (t, -t), zero first."""
    axes = (
        [lag for lag in range(1 - extent, extent) if lag * gap % stride == 0]
        for extent, stride, gap in zip(extents, strides, gaps, strict=True)
    )
    zero = (0,) * len(extents)
    return [lag for lag in product(*axes) if lag >= zero]


def _chunks(count: int, elements: int, multiple: int = 1) -> Iterator[slice]:
    """Slices that cover ``range(count)``, each a multiple of ``multiple`` items and about ``TILE`` elements."""
    step = multiple * max(1, MAX_TILE_ELEMENTS // (elements * multiple))
    return (slice(begin, begin + step) for begin in range(0, count, step))


def _unit_peak(taps: FloatingArray) -> tuple[Float32s, Float32s]:
    """Kernels [B, *k] divided by their largest tap (so that squares do not overflow), and that tap [B]."""
    axes = tuple(range(1, taps.ndim))
    peaks = np.abs(taps).max(axis=axes).astype(np.float32)
    divisor = np.where(peaks == 0, np.float32(1), peaks)
    with np.errstate(invalid="ignore"):
        return np.divide(taps, np.expand_dims(divisor, axes), dtype=np.float32), peaks


def _by_lags(flat: FloatingArray, lags: list[IntTuple], strides: IntTuple, gaps: IntTuple, size: IntTuple) -> Float32s:
    """Norms [B] of kernels [B, *k] as products of cosines [frequencies, lags] and autocorrelations [lags, kernels]."""
    norms = np.zeros(len(flat), np.float32)
    for waves in _waves(np.array(lags), strides, gaps, size):
        for chunk in _chunks(len(flat), waves.shape[0] * waves.shape[1] + prod(flat.shape[1:]), KERNELS_PER_PRODUCT):
            taps, peaks = _unit_peak(flat[chunk])
            power = (waves[:, None] @ _autocorrelation(taps, lags)).max(axis=(0, 2)).reshape(-1)[: len(taps)]
            with np.errstate(over="ignore"):
                np.maximum(norms[chunk], peaks * np.sqrt(np.maximum(power, 0)), out=norms[chunk])
    return norms


def _waves(lags: Ints, strides: IntTuple, gaps: IntTuple, size: IntTuple) -> Iterator[Float32s]:
    """cos(2 pi j . D t / N), doubled for t != 0, on half of the low frequencies: tiles [products, frequencies, lags].

    The last product is padded with the last frequency.
    """
    low = [n // stride for n, stride in zip(size, strides, strict=True)]
    grid = (*low[:-1], low[-1] // 2 + 1)
    twice = np.where(lags.any(axis=1), 2.0, 1.0)
    rows = min(prod(grid), MAX_FREQUENCIES, MACS_PER_PRODUCT // KERNELS_PER_PRODUCT // len(lags))
    for begin in range(0, prod(grid), MAX_FREQUENCIES // rows * rows):
        count = min(MAX_FREQUENCIES // rows, ceil((prod(grid) - begin) / rows)) * rows
        frequencies = np.unravel_index(np.minimum(begin + np.arange(count), prod(grid) - 1), grid)
        axes = zip(frequencies, lags.T, gaps, size, strict=True)
        turns = sum((np.outer(j, lag * gap) % n / n for j, lag, gap, n in axes), np.zeros(()))
        yield (twice * np.cos(2 * np.pi * turns)).astype(np.float32).reshape(-1, rows, len(lags))


def _autocorrelation(taps: Float32s, lags: list[IntTuple]) -> Float32s:
    """r(t) = sum over x of w(x) w(x + t) of kernels [B, *k]: [products, lags, COLUMNS], padded with zeros."""
    last = np.ascontiguousarray(np.moveaxis(taps, 0, -1))
    columns = ceil(len(taps) / KERNELS_PER_PRODUCT) * KERNELS_PER_PRODUCT
    result = np.zeros((len(lags), columns), np.float32)
    for row, lag in zip(result, lags, strict=True):
        here = last[tuple(slice(max(0, -t), n - max(0, t)) for t, n in zip(lag, last.shape, strict=False))]
        there = last[tuple(slice(max(0, t), n - max(0, -t)) for t, n in zip(lag, last.shape, strict=False))]
        np.sum(here * there, axis=tuple(range(len(lag))), out=row[: len(taps)])
    return result.reshape(len(lags), -1, KERNELS_PER_PRODUCT).transpose(1, 0, 2)


def _by_transform(flat: FloatingArray, strides: IntTuple, gaps: IntTuple, size: IntTuple) -> Float32s:
    """Norms [B] of kernels [B, *k]: the power of all polyphase parts, whose sum is the sum over aliases."""
    rank = len(size)
    norms = np.empty(len(flat), np.float32)
    for chunk in _chunks(len(flat), prod(size)):
        taps, peaks = _unit_peak(flat[chunk])
        spectrum = np.fft.rfftn(_polyphase(taps, strides, gaps, size), axes=tuple(range(-rank, 0)))
        power = (spectrum.real**2 + spectrum.imag**2).sum(axis=1)
        with np.errstate(over="ignore"):
            norms[chunk] = peaks * np.sqrt(power.max(axis=tuple(range(1, rank + 1))))
    return norms


def _polyphase(taps: Float32s, strides: IntTuple, gaps: IntTuple, size: IntTuple) -> Float32s:
    """The dilated kernels [B, *k] wrapped around the image, split by position modulo stride: [B, prod(s), *N/s]."""
    image = np.zeros((*size, len(taps)), np.float32)
    places = (np.arange(k) * gap % n for k, gap, n in zip(taps.shape[1:], gaps, size, strict=True))
    np.add.at(image, np.ix_(*places), np.moveaxis(taps, 0, -1))
    rank = len(size)
    parts = image.reshape(*(extent for n, s in zip(size, strides, strict=True) for extent in (n // s, s)), len(taps))
    low, phases = tuple(range(0, 2 * rank, 2)), tuple(range(1, 2 * rank, 2))
    ordered = parts.transpose(2 * rank, *phases, *low)
    return ordered.reshape(len(taps), prod(strides), *ordered.shape[1 + rank :])

"""Recognise matrices and kernels that were designed, not learned, by properties that learned numbers never have.

Each test asks for many equations between numbers to hold to rounding; a matrix that came out of a training fulfils
none of them by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import gcd

import numpy as np

from leanonnx.numeric.arrays import Array

ORTHOGONAL_TOLERANCE = 1e-3
"""Largest deviation from a multiple of the identity, relative to it; half precision keeps this."""
ROUNDING = 1e-3
"""Largest relative deviation of two numbers that are equal but for the rounding of half precision."""
MIN_RECURRENCE = 8
"""Shortest row whose recurrence says something: six equations in one unknown."""
MIN_MATRIX_SIDE = 8
"""Smallest side of a matrix that is searched for rows that repeat each other."""
MAX_ROW_SHIFT = 8
"""Largest shift between rows that repeat each other."""
MIN_FEW_VALUED = 64
"""Smallest number of elements of which three different values say something."""
FEW_VALUES = 3
ORTHOGONAL = "its rows or columns are orthogonal and of one length"
SINUSOIDAL = "its rows or columns are sampled sinusoids"
WINDOWED = "its rows are sinusoids under one window"
SHIFTED = "its rows are shifted copies of each other (a filter, or a resampling)"
FEW_VALUED = f"it holds {FEW_VALUES} different numbers at most"
MIRRORED = "its kernels are mirror images of themselves (a fixed filter)"
COMPLEX_PART = "it is the real or imaginary part of a complex transform"
ADJOINT = "it is another constant, transposed"


def designed_matrix(value: Array) -> str:
    """Return the property that tells that a matrix, or a stack of matrices, was designed; empty if there is none."""
    if value.ndim < 2 or min(value.shape[-2:]) < 1:
        return ""
    matrices = value.astype(np.float64).reshape(-1, *value.shape[-2:])
    if not np.isfinite(matrices).all() or not matrices.any():
        return ""
    tests = {
        ORTHOGONAL: _is_orthogonal,
        SINUSOIDAL: _is_sinusoidal,
        WINDOWED: _is_windowed,
        SHIFTED: _is_shifted,
        FEW_VALUED: _is_few_valued,
    }
    return next((name for name, test in tests.items() if all(test(matrix) for matrix in matrices)), "")


def designed_kernel(value: Array, groups: int = 1) -> str:
    """Return the property that tells that a convolution's kernels [O, I, *k] were designed; empty if there is none."""
    if value.ndim < 3 or not np.isfinite(value).all() or not value.any() or value.shape[0] % groups:
        return ""
    reason = designed_matrix(value.reshape(groups, value.shape[0] // groups, -1))
    if reason in ("", FEW_VALUED) and value[0, 0].size > 1 and _is_mirrored(value.astype(np.float64)):
        return MIRRORED
    return reason


def complex_parts(matrices: Mapping[str, Array]) -> frozenset[str]:
    """Names of the matrices that are, with another one, the real and imaginary parts of a complex transform.

    The rows or columns of the complex matrix are orthogonal and of one length, or its rows have one envelope.
    """
    shaped: dict[tuple[int, ...], list[str]] = {}
    for name, value in matrices.items():
        if value.ndim == 2 and min(value.shape) > 1 and np.isfinite(value).all():
            shaped.setdefault(value.shape, []).append(name)
    parts: set[str] = set()
    for names in shaped.values():
        for turn in (False, True):
            sides = {name: matrices[name].astype(np.float64) for name in names}
            sides = {name: value.T if turn else value for name, value in sides.items()}
            lengths = {name: np.square(value).sum(axis=1) for name, value in sides.items()}
            for one, other in combinations(names, 2):
                real, imaginary = sides[one], sides[other]
                if _is_constant(lengths[one] + lengths[other]) and (
                    _is_unitary(real, imaginary) or _share_envelope(real, imaginary)
                ):
                    parts |= {one, other}
    return frozenset(parts)


def adjoints(matrices: Mapping[str, Array]) -> frozenset[str]:
    """Names of the matrices that are a multiple of another one, transposed."""
    shaped: dict[tuple[int, ...], list[str]] = {}
    for name, value in matrices.items():
        if value.ndim == 2 and min(value.shape) > 1 and value.any():
            shaped.setdefault(value.shape, []).append(name)
    pairs = ((one, other) for shape, names in shaped.items() for one in names for other in shaped.get(shape[::-1], ()))
    return frozenset(
        name
        for one, other in pairs
        if one != other and _are_parallel(matrices[one], matrices[other].T)
        for name in (one, other)
    )


def _are_parallel(one: Array, other: Array) -> bool:
    """Return True if two arrays are multiples of each other, to rounding."""
    row = int(np.argmax(one.any(axis=1)))
    column = int(np.argmax(np.abs(one[row])))
    factor = float(other[row, column]) / float(one[row, column])
    bound = ROUNDING * float(np.abs(other).max())
    return factor != 0 and all(
        float(np.abs(a.astype(np.float64) * factor - b).max()) <= bound
        for a, b in ((one[row], other[row]), (one, other))
    )


def _is_constant(lengths: Array) -> bool:
    """Return True if numbers are all equal, and above 0, to rounding."""
    mean = float(lengths.mean())
    return mean > 0 and float(np.abs(lengths - mean).max()) <= ORTHOGONAL_TOLERANCE * mean


def _is_scaled_identity(gram: Array) -> bool:
    mean = float(np.diag(gram).real.mean())
    return mean > 0 and float(np.abs(gram - mean * np.eye(len(gram))).max()) <= ORTHOGONAL_TOLERANCE * mean


def _is_orthogonal(matrix: Array) -> bool:
    """Return True if the rows, or the columns if these are fewer, are orthogonal and of one length."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return len(short) > 1 and _is_constant(np.square(short).sum(axis=1)) and _is_scaled_identity(short @ short.T)


def _is_unitary(real: Array, imaginary: Array) -> bool:
    """Return True if the rows of a complex matrix are orthogonal and of one length."""
    return len(real) <= real.shape[1] and _is_scaled_identity(
        real @ real.T + imaginary @ imaginary.T + 1j * (imaginary @ real.T - real @ imaginary.T)
    )


def _is_sinusoidal(matrix: Array) -> bool:
    """Return True if all rows, or all columns, obey x[n - 1] + x[n + 1] = 2 cos(ω) x[n]."""
    return any(_rows_recur(rows) for rows in (matrix, matrix.T) if rows.shape[1] >= MIN_RECURRENCE and len(rows) > 1)


def _rows_recur(rows: Array) -> bool:
    middle, sums = rows[:, 1:-1], rows[:, :-2] + rows[:, 2:]
    power = np.square(middle).sum(axis=1)
    twice_cosine = np.divide((middle * sums).sum(axis=1), power, out=np.zeros(len(rows)), where=power > 0)
    rest = np.square(sums - twice_cosine[:, None] * middle).sum(axis=1)
    lengths = np.square(rows).sum(axis=1)
    bounded = (np.abs(twice_cosine) <= 2 + ROUNDING) | (lengths <= ROUNDING**2 * lengths.max())
    return bool((bounded & (rest <= ROUNDING**2 * lengths.max())).all())


def _is_windowed(matrix: Array) -> bool:
    """Return True if the rows are the real parts, then the imaginary parts, of complex ones with one envelope."""
    half = len(matrix) // 2
    return len(matrix) == 2 * half and _share_envelope(matrix[:half], matrix[half:])


def _share_envelope(real: Array, imaginary: Array) -> bool:
    """Return True if all rows of a complex matrix, at least two and long ones, have the same absolute values."""
    if len(real) < 2 or real.shape[1] < MIN_RECURRENCE:
        return False
    squares = real**2 + imaginary**2
    return float(np.abs(squares - squares.mean(axis=0)).max()) <= ROUNDING * float(squares.max())


def _is_shifted(matrix: Array) -> bool:
    """Return True if the inner rows are copies of each other, shifted by the ratio of the sides."""
    if min(matrix.shape) < MIN_MATRIX_SIDE:
        return False
    rows, columns = matrix.shape
    common = gcd(rows, columns)
    shifts = {(1, 1), (rows // common, columns // common)}
    inner = matrix[rows // 4 : rows - rows // 4]
    scale = float(np.abs(inner).max())
    return scale > 0 and any(
        max(down, right) <= MAX_ROW_SHIFT
        and len(inner) > down + 1
        and float(np.abs(inner[down:, right:] - inner[:-down, :-right]).max()) <= ROUNDING * scale
        for down, right in shifts
    )


def _is_few_valued(matrix: Array) -> bool:
    some = matrix.reshape(-1)[:: max(matrix.size // MIN_FEW_VALUED, 1)]
    return matrix.size >= MIN_FEW_VALUED and np.unique(some).size <= FEW_VALUES >= np.unique(matrix).size


def _is_mirrored(kernels: Array) -> bool:
    """Return True if each kernel of [O, I, *k] equals itself, or its negative, mirrored along each of its axes."""
    return all(_equals_mirror(kernel) for kernel in _nonzero(kernels.reshape(-1, *kernels.shape[2:])))


def _nonzero(kernels: Sequence[Array] | Array) -> Iterator[Array]:
    """Yield the kernels that are not zero, without a border of zeros."""
    for kernel in kernels:
        if kernel.any():
            places = [
                np.flatnonzero(kernel.any(axis=tuple(b for b in range(kernel.ndim) if b != axis)))
                for axis in range(kernel.ndim)
            ]
            yield kernel[tuple(slice(place[0], place[-1] + 1) for place in places)]


def _equals_mirror(kernel: Array) -> bool:
    bound = ROUNDING * float(np.abs(kernel).max())
    mirrored = [(kernel, np.flip(kernel, axis)) for axis in range(kernel.ndim)]
    return all(min(np.abs(a - b).max(), np.abs(a + b).max()) <= bound for a, b in mirrored)

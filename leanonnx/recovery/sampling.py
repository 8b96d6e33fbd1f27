"""Numbers of rows that the fit of a layer takes, and the positions that they come from."""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.arrays import Ints

ROWS_PER_FEATURE = 8
"""Rows of a regression for each of its features, by default."""
MIN_FIT_ROWS = 2_000
MAX_FREE_ROWS = 50_000
"""Largest number of rows beyond those that the features ask for."""
FREE_WORK = 2e9
"""Multiply-adds of the products of a layer up to which it takes more rows than its features ask for."""
FREE_NUMBERS = 1 << 22
"""Numbers in the rows of a layer up to which it does so."""
MAX_FEATURES = 5_000
"""Number of features up to which a regression is solved in feature space, not in row space."""
MAX_ROW_SPACE = 3_000
"""Largest number of rows of a regression with more features than that."""
ROW_SPACE_NUMBERS = 1 << 26
MIN_ROW_SPACE = 256


def fit_rows(groups: int, width: int, out: int, rows_per_feature: int = ROWS_PER_FEATURE) -> int:
    """Number of rows to fit a layer to.

    Args:
        groups: its conv groups.
        width: features of each group.
        out: outputs of each group.
        rows_per_feature: rows for each feature.
    """
    if width > MAX_FEATURES:
        return max(MIN_ROW_SPACE, min(MAX_ROW_SPACE, ROW_SPACE_NUMBERS // width))
    work = FREE_WORK / (groups * width * (width + out))
    numbers = FREE_NUMBERS / (groups * (width + out))
    return int(max(rows_per_feature * width, MIN_FIT_ROWS, min(work, numbers, MAX_FREE_ROWS)))


def spread_positions(positions: int, count: int, rng: np.random.Generator) -> Ints:
    """Up to ``count`` different positions, ascending: one at random in each of as many equal stretches."""
    count = min(count, positions)
    edges = np.arange(count + 1) * positions // max(count, 1)
    return np.asarray(edges[:-1] + rng.random(count) * np.diff(edges), np.int64)

"""Number of rows that the fit of a layer takes."""

from __future__ import annotations

GROUPED_ROWS_PER_FEATURE = 32
"""Rows for each feature of a layer with several conv groups, whose features are few."""
MIN_FIT_ROWS = 2_000
"""Least number of rows of a layer with one conv group."""
MAX_FREE_ROWS = 60_000
"""Largest number of rows beyond those that the features ask for."""
FREE_WORK = 5e10
"""Multiply-adds of the products of all layers up to which each takes more rows than its features ask for."""
FREE_NUMBERS = 1 << 28
"""Numbers in the rows of all layers up to which they do so."""
MAX_FEATURES = 5_000
"""Number of features up to which a regression is solved in feature space, not in row space."""
MAX_ROW_SPACE = 3_000
"""Largest number of rows of a regression with more features than that."""
ROW_SPACE_NUMBERS = 1 << 26
MIN_ROW_SPACE = 256


def fit_rows(groups: int, width: int, out: int, layers: int, rows_per_feature: int) -> int:
    """Number of rows to fit a layer to.

    Args:
        groups: its conv groups.
        width: features of each group.
        out: outputs of each group.
        layers: number of layers that share the free rows.
        rows_per_feature: rows for each feature.
    """
    if width > MAX_FEATURES:
        return max(MIN_ROW_SPACE, min(MAX_ROW_SPACE, ROW_SPACE_NUMBERS // width))
    work = FREE_WORK / layers / (groups * width * (width + out))
    numbers = FREE_NUMBERS / layers / (groups * (width + out))
    least = max(rows_per_feature * width, MIN_FIT_ROWS)
    if groups > 1:
        least = max(rows_per_feature, GROUPED_ROWS_PER_FEATURE) * width
    return int(max(least, min(work, numbers, MAX_FREE_ROWS)))

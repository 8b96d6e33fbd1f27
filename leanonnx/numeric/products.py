"""Products of large matrices, computed by numpy unless the caller names another way (``computed_by``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from leanonnx.numeric.arrays import Array

MatrixProduct = Callable[[Array, Array], Array]
"""Matrix product of two arrays [..., m, n] and [..., n, k], in the precision that they have."""

_PRODUCT: ContextVar[MatrixProduct] = ContextVar("product", default=np.matmul)


def matrix_product(left: Array, right: Array) -> Any:
    """Product [..., m, k] of arrays [..., m, n] and [..., n, k], in their own precision."""
    return _PRODUCT.get()(left, right)


@contextmanager
def computed_by(product: MatrixProduct) -> Iterator[None]:
    """Compute ``matrix_product`` by a function inside the context."""
    token = _PRODUCT.set(product)
    try:
        yield
    finally:
        _PRODUCT.reset(token)

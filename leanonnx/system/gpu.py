"""Products of matrices on a GPU, by torch if it is installed."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np

from leanonnx.errors import OptionError
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.products import MatrixProduct
from leanonnx.spelling import option

Device = Literal["cpu", "cuda"]
MIN_DEVICE_WORK = 1e8
"""Multiply-adds of a product from which a GPU is worth the transfer of its factors."""


def check_device(device: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        OptionError: torch is not installed, or sees no GPU.
    """
    instead = f"or use {option('device', 'cpu')}"
    try:
        import torch
    except ImportError as error:
        raise OptionError(f"{option('device', device)} needs torch: pip install torch, {instead}") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"{option('device', device)}: torch sees no GPU; install torch for CUDA, {instead}")


def product_on(device: str, min_work: float = MIN_DEVICE_WORK) -> MatrixProduct:
    """Return a function that computes products on a device of torch; numpy computes small ones.

    Args:
        device: ``cpu`` or ``cuda``.
        min_work: multiply-adds from which the device computes a product.

    Raises:
        OptionError: torch is not installed, or sees no GPU.
    """
    check_device(device)
    import torch

    def product(left: Array, right: Array) -> Array:
        if left.size * right.shape[-1] < min_work:
            return np.asarray(np.matmul(left, right))
        there = torch.from_numpy(left).to(device) @ torch.from_numpy(right).to(device)
        return cast(Array, there.cpu().numpy())

    return product

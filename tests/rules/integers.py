"""Quantised weights of the cases: integers, scales and zero points."""

from __future__ import annotations

import numpy as np

from tests.rules.model_builder import ModelBuilder


def scales(b: ModelBuilder, count: int, per_channel: bool) -> str:
    """One scale for a weight, or one per channel."""
    return b.const(0.02 * b.positive(count)) if per_channel else b.scalar(0.02)


def zeros(b: ModelBuilder, count: int, per_channel: bool, kind: type = np.int8) -> str:
    """One zero point for a weight, or one per channel (0 for signed ones, as onnxruntime wants it)."""
    low = 0 if kind is np.int8 else 120
    return b.const(np.full(count, low, kind)) if per_channel else b.scalar(low, kind)


def integers(b: ModelBuilder, *shape: int, kind: type = np.int8) -> str:
    low, high = (-100, 100) if kind is np.int8 else (20, 220)
    return b.const(b.rng.integers(low, high, shape).astype(kind))

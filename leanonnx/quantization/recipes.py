"""Ways to make candidates in integers from a float model, and how clearly one is nearer to it than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from leanonnx.numeric.arrays import Floats
from leanonnx.quantization.ranges import Ranges
from leanonnx.quantization.weights import RoundWeights, nearest_weights

CLEAR_ERRORS = 2.0
"""Standard errors by which a more elaborate way has to be nearer: what is clipped shows in few samples only."""


@dataclass(frozen=True, kw_only=True)
class Int8Recipe:
    """Way to make candidates of a float model, whatever layers are in integers.

    ``errors``: of the candidate with all that can be in integers, on parts of the held-out samples.
    """

    proto: onnx.ModelProto
    ranges: Ranges
    method: str
    corrections: tuple[str, ...] = ()
    round_weights: RoundWeights = field(default=nearest_weights)
    errors: Floats = field(default_factory=lambda: np.array([np.inf]))

    @property
    def error(self) -> float:
        """The mean error."""
        return float(self.errors.mean())

    def is_clearly_nearer(self, other: Int8Recipe) -> bool:
        """True if the error is smaller than that of another by ``CLEAR_ERRORS`` standard errors over the parts."""
        gains = other.errors - self.errors
        if not np.isfinite(gains).all():
            return self.error < other.error
        spread = float(gains.std(ddof=1)) / np.sqrt(gains.size) if gains.size > 1 else 0.0
        return float(gains.mean()) > CLEAR_ERRORS * spread

    def and_also(self, correction: str) -> Int8Recipe:
        """The same with a correction noted."""
        return replace(self, corrections=(*self.corrections, correction))


def nearest_recipe(recipes: Sequence[Int8Recipe]) -> Int8Recipe:
    """The recipe with the smallest error; of two that do not differ clearly, the one that comes first."""
    best = recipes[0]
    for recipe in recipes[1:]:
        best = recipe if recipe.is_clearly_nearer(best) else best
    return best

"""The operators that multiply and sum 8-bit integers: their slots, and the float operators that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class IntegerSlots:
    """Input slots of an integer operator, -1 where it has none, and the float operator that it stands for.

    ``data`` and ``output``: scale and zero point of the tensor.  The data lie in slot 0.
    """

    operator: str
    data: tuple[int, int]
    weight: int
    scale: int
    zero: int
    output: tuple[int, int]
    bias: int


INTEGER_FORMS: Mapping[str, IntegerSlots] = {
    "QLinearConv": IntegerSlots("Conv", (1, 2), 3, 4, 5, (6, 7), 8),
    "QLinearMatMul": IntegerSlots("MatMul", (1, 2), 3, 4, 5, (6, 7), -1),
    "ConvInteger": IntegerSlots("Conv", (-1, 2), 1, -1, 3, (-1, -1), -1),
    "MatMulInteger": IntegerSlots("MatMul", (-1, 2), 1, -1, 3, (-1, -1), -1),
}
"""The integer operators whose weights are pruned and fitted.  Without a slot of a scale, the scale is 1."""

"""All cases, one file per family of operators."""

from __future__ import annotations

from tests.rules import (
    assembly_cases,
    convolution_cases,
    einsum_cases,
    indexing_cases,
    join_cases,
    linear_cases,
    movement_cases,
    normalization_cases,
    pointwise_cases,
    quantization_cases,
    recurrent_cases,
    reduction_cases,
    spatial_cases,
    window_cases,
)
from tests.rules.case import Case

FAMILIES = (
    *(einsum_cases, recurrent_cases),
    *(assembly_cases, convolution_cases, indexing_cases, join_cases, linear_cases, movement_cases),
    *(normalization_cases, pointwise_cases, quantization_cases, reduction_cases, spatial_cases, window_cases),
)
CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CASES)

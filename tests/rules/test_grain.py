"""Granularity of grouped convolutions: whole conv groups where these are many or narrow, else positions."""

from __future__ import annotations

import pytest

from tests.rules.case import Form
from tests.rules.harness import analysed, sampled, seeded, touched
from tests.rules.model_builder import ModelBuilder


@pytest.mark.parametrize(
    ("groups", "width", "out", "classes"),
    [
        (1, 3, 5, 3 + 5),
        (2, 3, 4, 3 + 4),
        (2, 2, 4, 2),
        (2, 4, 2, 2),
        (4, 5, 6, 5 + 6),
        (4, 1, 3, 4),
        (7, 8, 9, 8 + 9),
        (8, 9, 9, 8),
    ],
)
def test_classes_of_a_grouped_convolution(groups: int, width: int, out: int, classes: int) -> None:
    def build(b: ModelBuilder) -> None:
        data = b.image(groups * width, 2, 2)
        b.subject("Conv", [data, b.const(b.normal(groups * out, width, 1, 1))], group=groups)

    sample = sampled(Form("grouped", build), seeded(0))
    with analysed(sample.proto) as dag:
        assert touched(dag, sample).size == classes

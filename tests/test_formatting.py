"""Texts for counts, changes, shapes and metrics."""

from __future__ import annotations

import math

import pytest

from leanonnx.api.results import Timings
from leanonnx.commands.bench.benchmark import BenchCase, BenchRequest
from leanonnx.commands.bench.report import bench_report
from leanonnx.formatting import (
    MAX_QUOTED_LENGTH,
    change_text,
    count_text,
    json_value,
    quoted_text,
    shape_text,
)
from leanonnx.reporting.remarks import metric_text
from leanonnx.reporting.rows import MetricChange
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import Timing


@pytest.mark.parametrize(
    ("count", "word", "text"),
    [(0, "layer", "0 layers"), (1, "layer", "1 layer"), (2, "layer", "2 layers"), (59488, "kernel", "59,488 kernels")],
)
def test_words_follow_their_number(count: int, word: str, text: str) -> None:
    assert count_text(count, word) == text


@pytest.mark.parametrize(("threads", "text"), [(1, "cpu, 1 thread, x 2,3: 1.500 ms"), (4, "cpu, 4 threads, x 2,3: 1.")])
def test_threads_of_a_measurement(threads: int, text: str) -> None:
    timing = Timing(p10=1.0, median=1.5, p90=2.0, session=1.0, first=1.0, runs=10, memory=0, layouts=None)
    cases = (BenchCase(batch=None, inputs={"x": (2, 3)}, setting=Setting("cpu", threads), outcome=timing),)
    assert repr(Timings(cases, bench_report("m.onnx", None, BenchRequest(), cases))).startswith(f"<{text}")


def test_numbers_outside_json_are_null() -> None:
    assert [json_value(value) for value in (1.5, 7, None, "a", math.inf, -math.inf, math.nan)] == [
        *(1.5, 7, None, "a"),
        *(None, None, None),
    ]


def test_pairs_shapes_and_metrics() -> None:
    assert (change_text([4, 4]), change_text([4096, 8])) == ("4", "4,096 → 8")
    assert shape_text((1, 3, 224, 224)) == "1,3,224,224"
    metric = MetricChange(name="accuracy", better="higher", before=0.91234, after=0.9)
    assert metric_text(metric) == "accuracy: 0.9123 → 0.9000 (higher is better)"


def test_long_messages_of_others_end_after_a_sentence_or_a_word() -> None:
    assert quoted_text(" a\n b ") == "a b"
    words = "The output type is not that which was declared " * 20
    assert quoted_text(words).removesuffix(" …").split()[-1] in words.split()
    sentences = quoted_text(f"{words[:200]}done. {words}")
    assert sentences.endswith("done …") and len(sentences) <= MAX_QUOTED_LENGTH
    assert quoted_text("x" * 1000) == "x" * MAX_QUOTED_LENGTH + "…"

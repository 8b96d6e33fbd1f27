"""The first line where several outputs, little variation or few samples could make it misleading."""

from __future__ import annotations

from dataclasses import replace

from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.summary import Statement, summarise
from tests.pages import plain
from tests.test_summary import INTEGERS, JUDGEMENT, SURE, context, judged, output, step

FITTED = " on samples that were fitted"
MORE = "give 128 samples or more with --calib (there were 200): none could be held out"


def accuracy(report: CompressionReport) -> Statement:
    found = summarise(report, context(macs=0.5)).accuracy
    return replace(found, text=plain(found.text))


def test_an_output_that_varies_little_is_told_by_its_variation() -> None:
    """An error of 1 % is much for boxes that differ by 2.4 % from image to image."""
    report = judged(output(0.01), output(0.05), judgement=replace(JUDGEMENT, mean_l2=0.024))
    text = "output 'y0': outputs off by 1.0 %, 41.7 % of how much they vary"
    assert (accuracy(report).text, accuracy(report).mood) == (text, "bad")


def test_the_largest_error_is_told_where_none_is_bad() -> None:
    report = judged(output(0.05, ends=(0.04, 0.07)), output(0.02))
    text = "output 'y0': outputs off by 5.0 % (4.0 % to 7.0 %)"
    assert (accuracy(report).text, accuracy(report).mood) == (text, "plain")


def test_an_accuracy_on_fitted_samples_is_called_so() -> None:
    held = judged(SURE)
    assert held.recovery is not None and FITTED not in accuracy(held).text
    fitted = replace(held, recovery=replace(held.recovery, held_out=0))
    assert accuracy(fitted).text.endswith(FITTED) and step(fitted).startswith(MORE)
    for row in (replace(held.recovery, held_out=0, parts=5), replace(held.recovery, held_out=0, kept=False)):
        assert FITTED not in accuracy(replace(held, recovery=row)).text
    integers = replace(held, quantisation=replace(INTEGERS, held_out=0))
    assert accuracy(integers).text.endswith(FITTED) and step(integers).startswith(MORE)
    assert FITTED not in accuracy(replace(fitted, quantisation=INTEGERS)).text

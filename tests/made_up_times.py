"""Measurements made up in tests: a machine whose times are a curve of the predicted ones, and its load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.analysis.dag import build_channel_dag
from leanonnx.commands.compress import timing as timings
from leanonnx.graph.model import load
from leanonnx.hardware.targets import builtin_hardware
from leanonnx.runtime.observation import observe
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.selection.latency import latency_model
from leanonnx.selection.metrics import Budget
from leanonnx.selection.search import Trial
from leanonnx.selection.selector import Selection, SelectionRequest, Selector
from leanonnx.selection.widths import Alignment

WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
wide (float[1, 3, 8, 8] x) => (float[1, 10] y)
<float[128, 3, 3, 3] w1, float[160, 128, 3, 3] w2, float[192, 160, 1, 1] w3, float[10, 192] w4, float[10] b4>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv (r2, w3)
    p3 = GlobalAveragePool (c3)
    f3 = Flatten (p3)
    y = Gemm <transB = 1> (f3, w4, b4)
}
"""
TARGET = builtin_hardware()["cpu-avx512"]


def timing(median: float) -> Timing:
    return Timing(p10=median, median=median, p90=median, session=1.0, first=1.0, runs=15, memory=0, layouts=None)


def comparison(fraction: float, spread: float = 0.01, waited: float = 0.0) -> TimingComparison:
    """The comparison that measuring a model with this fraction of the latency would give."""
    speedup = 1 / fraction
    ends = speedup * (1 - spread), speedup * (1 + spread)
    before, after = (replace(timing(each), waited=waited) for each in (1.0, fraction))
    return TimingComparison(before=before, after=after, speedup=speedup, interval=ends, noise=spread, rounds=15, lots=1)


def selector(model: Path, budget: Budget, best_effort: bool = False) -> Selector:
    loaded = load(model)
    dag = build_channel_dag(loaded, observe(loaded, {}))
    alignment = Alignment(TARGET.block, TARGET.multiple)
    return Selector(dag, SelectionRequest(budget=budget, best_effort=best_effort, alignment=alignment, hardware=TARGET))


class Machine:
    """A substitute for onnxruntime: the time of a keep mask is a curve of its predicted time."""

    def __init__(
        self, selector: Selector, curve: Callable[[float], float], loads: Iterator[float] | None = None
    ) -> None:
        """``loads``: the share of the time of each measurement that other work takes."""
        self.predicted = latency_model(selector.dag, TARGET)
        self.whole = self.predicted(np.ones(selector.dag.count, bool))
        self.curve, self.trials, self.loads = curve, list[Trial](), loads

    def share(self, selection: Selection) -> float:
        return self.predicted(selection.alive) / self.whole

    def attempt(self, selection: Selection, seconds: float) -> Trial:
        load = 0.0 if self.loads is None else next(self.loads)
        self.trials.append(Trial(selection, comparison(self.curve(self.share(selection)), waited=load)))
        return self.trials[-1]


def measuring(
    monkeypatch: pytest.MonkeyPatch, fraction: Callable[[Path], float], spread: float = 0.01, waited: float = 0.0
) -> list[object]:
    """Fake measurements that give a file some fraction of the original's time; returns the requested settings."""
    asked: list[object] = []

    def measured(before: Path, after: Path, feed: object, setting: object, *rest: object) -> TimingComparison:
        asked.append(setting)
        return comparison(fraction(after), spread, waited)

    monkeypatch.setattr(timings, "compare_in_subprocess", measured)
    monkeypatch.setattr(timings, "profile_in_subprocess", lambda *_: ((),))
    return asked


def share_of_numbers(whole: int) -> Callable[[Path], float]:
    def share(path: Path) -> float:
        return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer) / whole

    return share

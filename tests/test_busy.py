"""A busy machine: what was measured on it decides nothing, unless the result is faster even so.  No clock is read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.errors import CouldNotTell
from leanonnx.reporting.summary import summarise
from leanonnx.selection.metrics import Budget
from leanonnx.selection.search import within_budget, within_latency
from tests.helpers import build, called, called_json, saved
from tests.made_up_times import WIDE, Machine, measuring, selector
from tests.test_summary import SURE, UNTIMED, context, judged, step


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(WIDE), tmp_path / "wide.onnx")


LOADS = [0.4, 0.0, 0.2, 0.0, 0.06, 0.9, 0.0, 0.0, 0.3, 0.0]
"""Shares of the time of measurements that other work takes."""


@pytest.mark.parametrize("start", range(len(LOADS)))
@pytest.mark.parametrize("slowness", [1.0, 1.3])
def test_a_busy_machine_gives_no_other_widths_without_a_word(model: Path, start: int, slowness: float) -> None:
    """Where the load comes from makes no difference: the widths of the budget, others and a word, or no answer."""
    chooser = selector(model, Budget("kernels", 0.8))
    alone = chooser.select().alive
    machine = Machine(chooser, lambda p: p * slowness, itertools.cycle(LOADS[start:] + LOADS[:start]))
    try:
        found = within_budget(chooser, machine.predicted, machine.attempt)
    except CouldNotTell as no:
        assert slowness > 1
        assert "the machine was busy: waiting for a processor took" in str(no)
        assert "nothing written; wait until nothing else runs, measure with fewer threads" in str(no)
        return
    assert np.array_equal(found.selection.alive, alone) == (found.instead_of is None)
    assert found.faster


def test_no_search_while_the_machine_is_busy(model: Path) -> None:
    """What is not faster is measured once more, for longer; then there is no answer, and nothing else is tried."""
    chooser = selector(model, Budget("kernels", 0.8))
    machine = Machine(chooser, lambda _: 1.2, itertools.repeat(0.4))
    with pytest.raises(CouldNotTell, match="40% of the time"):
        within_budget(chooser, machine.predicted, machine.attempt)
    assert len(machine.trials) == 2
    willing = selector(model, Budget("kernels", 0.8), best_effort=True)
    found = within_budget(willing, machine.predicted, machine.attempt)
    assert np.array_equal(found.selection.alive, willing.select().alive)


def test_a_model_that_is_faster_even_then_is_chosen(model: Path) -> None:
    chooser = selector(model, Budget("kernels", 0.5))
    machine = Machine(chooser, lambda p: p, itertools.repeat(0.4))
    assert within_budget(chooser, machine.predicted, machine.attempt) is machine.trials[0]


def test_latency_is_not_searched_for_while_the_machine_is_busy(model: Path) -> None:
    chooser = selector(model, Budget("latency", 0.5))
    machine = Machine(chooser, lambda p: p, itertools.repeat(0.4))
    with pytest.raises(CouldNotTell, match="or give a budget of macs"):
        within_latency(chooser, machine.attempt)
    assert len(machine.trials) == 2
    short = Machine(chooser, lambda p: p, itertools.chain([0.4], itertools.repeat(0.0)))
    assert within_latency(chooser, short.attempt).fraction <= 0.5


# The same through the command line.


def test_compress_warns_of_a_busy_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same measure as ``bench``."""
    measuring(monkeypatch, lambda _: 0.5, spread=0.1)
    done = called("compress", model, model.parent / "o.onnx", "--keep", "0.5", measure=True)
    assert "the machine was busy: trust the ratio" in done.stdout


@pytest.mark.parametrize(("spread", "says"), [(0.1, "trust the ratio"), (0.6, "time it again when it is idle")])
def test_a_ratio_within_wide_bounds_is_no_answer(
    model: Path, monkeypatch: pytest.MonkeyPatch, spread: float, says: str
) -> None:
    measuring(monkeypatch, lambda _: 0.2, spread=spread)
    done = called("compress", model, model.parent / "o.onnx", "--keep", "0.5", measure=True)
    text = " ".join(done.stdout.lower().split())
    assert f"the machine was busy: {says}" in text
    assert ("speed not known, as the machine was busy: 2.00 to 8.00 times as fast" in text) == (spread > 0.5)


@pytest.mark.parametrize("budget", [("--keep", "0.5"), ("--macs", "0.5"), ("--exact",), ("--latency", "0.5")])
def test_compress_could_not_tell_on_a_busy_machine(
    model: Path, monkeypatch: pytest.MonkeyPatch, budget: tuple[str, ...]
) -> None:
    proto = onnx.load(model)
    weights = next(t for t in proto.graph.initializer if t.name == "w2")
    array = onnx.numpy_helper.to_array(weights).copy()
    array[:4] = 0
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    saved(proto, model)
    measuring(monkeypatch, lambda _: 1.2, waited=0.4)
    target = model.parent / "out.onnx"
    done = called("compress", model, target, *budget, measure=True)
    assert done.returncode == 1
    assert "could not tell if the result is faster, as the machine was busy" in done.stderr
    assert "wait until nothing else runs, measure with fewer --threads, or " in done.stderr
    assert ("--no-measure" in done.stderr) == ("--latency" not in budget)
    assert not target.exists()


def test_best_effort_on_a_busy_machine_writes_the_widths_of_the_budget(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, lambda _: 1.2, waited=0.4)
    unmeasured, target = model.parent / "u.onnx", model.parent / "o.onnx"
    called("compress", model, unmeasured, "--keep", "0.5")
    row = called_json("compress", model, target, "--keep", "0.5", "--best-effort", measure=True)
    assert target.read_bytes() == unmeasured.read_bytes()
    assert "could not tell if the result is faster" in row["warnings"][0]
    assert row["latency"]["busy"]


def test_a_speed_that_is_not_known_is_as_neutral_as_one_that_was_not_measured() -> None:
    """It is still what the next step is about, once the accuracy is known to be good."""
    report, given = judged(SURE, latency=UNTIMED), context(macs=0.5)
    summary = summarise(report, given)
    assert summary.speed.mood == summarise(replace(report, latency=None), given).speed.mood == "plain"
    assert summary.mood == "plain"
    assert step(report, given).startswith("time it again while nothing else runs: leanonnx bench")

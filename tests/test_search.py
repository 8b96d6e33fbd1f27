"""The search for a keep set that is as fast as asked for, with measurements made up here: no clock is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.analysis.dag import build_channel_dag
from leanonnx.commands.compress import timing as timings
from leanonnx.errors import BudgetUnreachable
from leanonnx.graph.model import load
from leanonnx.hardware.targets import builtin_hardware
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.selection.latency import latency_model
from leanonnx.selection.metrics import Budget
from leanonnx.selection.search import MAX_TIMINGS, Trial, within_budget, within_latency
from leanonnx.selection.selector import Selection, SelectionRequest, Selector
from leanonnx.selection.widths import Alignment
from tests.helpers import build, called, called_json, saved

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
STEPPED = 0.88
"""Share of a latency budget that is surely used up, with widths that come in steps of 16 in four layers."""
TARGET = builtin_hardware()["cpu-avx512"]
CURVES: dict[str, Callable[[float], float]] = {
    "as predicted": lambda p: p,
    "a part that does not fall": lambda p: 0.2 + 0.8 * p,
    "better than predicted": lambda p: p**1.5,
    "worse than predicted": lambda p: p**0.7,
}


def timing(median: float) -> Timing:
    return Timing(p10=median, median=median, p90=median, session=1.0, first=1.0, runs=15, memory=0, layouts=None)


def comparison(fraction: float, spread: float = 0.01) -> TimingComparison:
    """The comparison that measuring a model with this fraction of the latency would give."""
    speedup = 1 / fraction
    ends = speedup * (1 - spread), speedup * (1 + spread)
    return TimingComparison(
        before=timing(1.0), after=timing(fraction), speedup=speedup, interval=ends, noise=spread, rounds=15, lots=1
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(WIDE), tmp_path / "wide.onnx")


def selector(model: Path, budget: Budget, best_effort: bool = False) -> Selector:
    loaded = load(model)
    dag = build_channel_dag(loaded, observe(loaded, {}))
    alignment = Alignment(TARGET.block, TARGET.multiple)
    return Selector(dag, SelectionRequest(budget=budget, best_effort=best_effort, alignment=alignment, hardware=TARGET))


class Machine:
    """A substitute for onnxruntime: the time of a keep mask is a curve of its predicted time."""

    def __init__(self, selector: Selector, curve: Callable[[float], float]) -> None:
        self.predicted = latency_model(selector.dag, TARGET)
        self.whole = self.predicted(np.ones(selector.dag.count, bool))
        self.curve, self.trials = curve, list[Trial]()

    def share(self, selection: Selection) -> float:
        return self.predicted(selection.alive) / self.whole

    def attempt(self, selection: Selection, seconds: float) -> Trial:
        self.trials.append(Trial(selection, comparison(self.curve(self.share(selection)))))
        return self.trials[-1]


@pytest.mark.parametrize("limit", [0.8, 0.5, 0.35])
@pytest.mark.parametrize("curve", CURVES)
def test_latency_budget_is_used_up(model: Path, curve: str, limit: float) -> None:
    chooser = selector(model, Budget("latency", limit))
    machine = Machine(chooser, CURVES[curve])
    found = within_latency(chooser, machine.attempt)
    assert found.fraction <= limit
    assert found.fraction >= STEPPED * limit
    assert found.selection.reached
    assert len(machine.trials) <= MAX_TIMINGS


def test_the_nearest_of_all_trials_is_taken(model: Path) -> None:
    chooser = selector(model, Budget("latency", 0.5))
    machine = Machine(chooser, CURVES["worse than predicted"])
    found = within_latency(chooser, machine.attempt)
    assert found.fraction == max(trial.fraction for trial in machine.trials if trial.fraction <= 0.5)


def test_unreachable_latency_is_refused_with_the_nearest_reachable_one(model: Path) -> None:
    chooser = selector(model, Budget("latency", 0.3))
    machine = Machine(chooser, lambda p: 0.4 + 0.6 * p)
    with pytest.raises(BudgetUnreachable, match=r"0\.4\d+ is the lowest that was measured.*ask for at least 0\.4"):
        within_latency(chooser, machine.attempt)
    chooser = selector(model, Budget("latency", 0.3), best_effort=True)
    found = within_latency(chooser, machine.attempt)
    assert not found.selection.reached
    assert 0.4 <= found.fraction < 0.45


def test_whole_latency_keeps_everything(model: Path) -> None:
    chooser = selector(model, Budget("latency", 1.0))
    found = within_latency(chooser, Machine(chooser, lambda p: p).attempt)
    assert found.selection.alive.all()
    assert found.comparison is None


def test_a_faster_candidate_is_chosen_at_once(model: Path) -> None:
    chooser = selector(model, Budget("kernels", 0.5))
    machine = Machine(chooser, lambda p: p)
    assert within_budget(chooser, machine.predicted, machine.attempt) is machine.trials[0]
    assert len(machine.trials) == 1


def test_a_slow_candidate_is_made_leaner_within_the_budget(model: Path) -> None:
    """As long as one block more or less decides, leaner keep sets are tried."""
    chooser = selector(model, Budget("kernels", 0.8))
    machine = Machine(chooser, lambda p: p * 1.3)
    found = within_budget(chooser, machine.predicted, machine.attempt)
    shares = [machine.share(trial.selection) for trial in machine.trials]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) > 1
    assert found.faster
    assert found.selection.after.kernels <= 0.8 * found.selection.before.kernels


def test_the_fastest_is_kept_where_nothing_is_faster(model: Path) -> None:
    chooser = selector(model, Budget("kernels", 0.8))
    machine = Machine(chooser, lambda p: 1.1 + p)
    found = within_budget(chooser, machine.predicted, machine.attempt)
    assert not found.faster
    assert found.fraction == min(trial.fraction for trial in machine.trials)


# The same through the command line.


def measuring(monkeypatch: pytest.MonkeyPatch, fraction: Callable[[Path], float], spread: float = 0.01) -> list[object]:
    """Fake measurements that give a file some fraction of the original's time; returns the requested settings."""
    asked: list[object] = []

    def measured(before: Path, after: Path, feed: object, setting: object, *rest: object) -> TimingComparison:
        asked.append(setting)
        return comparison(fraction(after), spread)

    monkeypatch.setattr(timings, "compare_in_subprocess", measured)
    return asked


def share_of_numbers(whole: int) -> Callable[[Path], float]:
    def share(path: Path) -> float:
        return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer) / whole

    return share


def test_compress_reports_what_it_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, lambda _: 0.5)
    row = called_json("compress", model, model.parent / "o.onnx", "--keep", "0.5", "--threads", "3", measure=True)
    found = row["latency"]
    assert (found["provider"], found["threads"], found["speedup"]) == ("cpu", 3, 2.0)
    assert (found["before_ms"], found["after_ms"], found["interval"]) == (1.0, 0.5, [1.98, 2.02])
    assert [(setting.provider, setting.threads) for setting in asked] == [("cpu", 3)]
    text = called("compress", model, model.parent / "o.onnx", "--keep", "0.5", measure=True).stdout
    assert "2.00 times the speed" in text
    assert "half" not in text
    assert (found["busy"], "the machine was busy" in text) == (False, False)


def test_compress_warns_of_a_busy_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same measure as ``bench``."""
    measuring(monkeypatch, lambda _: 0.5, spread=0.1)
    done = called("compress", model, model.parent / "o.onnx", "--keep", "0.5", measure=True)
    assert "the machine was busy: trust the ratio" in done.stdout


@pytest.mark.parametrize(("fraction", "words"), [(1.2, "slower than the original"), (1.0, "no faster")])
def test_compress_refuses_a_model_that_is_not_faster(
    model: Path, monkeypatch: pytest.MonkeyPatch, fraction: float, words: str
) -> None:
    measuring(monkeypatch, lambda _: fraction)
    target = model.parent / "out.onnx"
    done = called("compress", model, target, "--keep", "0.5", measure=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert not target.exists()
    row = called_json("compress", model, target, "--keep", "0.5", "--best-effort", measure=True)
    assert words in row["warnings"][0]
    assert target.exists()
    text = called("compress", model, target, "--keep", "0.5", "--best-effort", measure=True).stdout
    assert words in " ".join(text.splitlines()[1:3])


def test_compress_gives_up_channels_until_it_is_faster(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(int(np.prod(t.dims)) for t in onnx.load(model).graph.initializer)
    measuring(monkeypatch, lambda path: 1.2 * share_of_numbers(whole)(path))
    row = called_json("compress", model, model.parent / "o.onnx", "--keep", "0.9", measure=True)
    assert row["latency"]["speedup"] > 1
    assert row["params"]["fraction"] < 1 / 1.2
    assert row["warnings"] == []


def test_unmeasured_says_so(model: Path) -> None:
    assert called_json("compress", model, model.parent / "o.onnx", "--keep", "0.5")["latency"] is None
    text = called("compress", model, model.parent / "o.onnx", "--keep", "0.5").stdout
    assert "Latency was not measured" in text


def test_nothing_removed_is_not_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measuring(monkeypatch, lambda _: 2.0)
    row = called_json("compress", model, model.parent / "o.onnx", "--keep", "1", measure=True)
    assert row["latency"] is None
    assert asked == []
    assert (model.parent / "o.onnx").read_bytes() == model.read_bytes()


def test_a_model_that_cannot_be_measured_is_written_with_a_warning(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> TimingComparison:
        raise RunFailed("no such kernel")

    monkeypatch.setattr(timings, "compare_in_subprocess", measured)
    row = called_json("compress", model, model.parent / "o.onnx", "--keep", "0.5", measure=True)
    assert row["latency"] is None
    assert any("no such kernel" in text for text in row["warnings"])
    done = called("compress", model, model.parent / "l.onnx", "--latency", "0.5", measure=True)
    assert done.returncode == 2
    assert "no such kernel" in done.stderr
    assert not (model.parent / "l.onnx").exists()


def test_latency_budget_from_the_command_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(int(np.prod(t.dims)) for t in onnx.load(model).graph.initializer)
    measuring(monkeypatch, share_of_numbers(whole))
    plan = model.parent / "plan.json"
    row = called_json("compress", model, model.parent / "o.onnx", "--latency", "0.5", "--plan-out", plan, measure=True)
    assert 0.4 <= 1 / row["latency"]["speedup"] <= 0.5
    assert json.loads(plan.read_text())["options"]["latency"] == 0.5
    called_json("compress", model, model.parent / "again.onnx", "--plan", plan, measure=True)
    assert (model.parent / "again.onnx").read_bytes() == (model.parent / "o.onnx").read_bytes()


def test_latency_budget_in_python_measures_by_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, share_of_numbers(sum(int(np.prod(t.dims)) for t in onnx.load(model).graph.initializer)))
    result = leanonnx.compress(model, latency=0.5)
    assert result.latency is not None
    assert 0.4 <= 1 / result.latency.speedup <= 0.5


def test_another_budget_shares_the_ranking(model: Path) -> None:
    first = selector(model, Budget("macs", 0.8))
    for fraction in (0.9, 0.5, 0.3):
        other, alone = first.with_budget(Budget("macs", fraction)), selector(model, Budget("macs", fraction))
        assert np.array_equal(other.select().alive, alone.select().alive)
        assert (other.allocator is first.allocator) == (fraction <= 0.8)
    assert first.with_budget(first.request.budget) is first


def test_latency_needs_measuring(model: Path) -> None:
    done = called("compress", model, model.parent / "o.onnx", "--latency", "0.5")
    assert done.returncode == 2
    assert "--no-measure" in done.stderr


@pytest.mark.parametrize("text", ["0", "-4", "wide", "1.5"])
def test_wrong_alignment(model: Path, text: str) -> None:
    done = called("compress", model, model.parent / "o.onnx", "--keep", "0.5", "--align", text)
    assert done.returncode == 2
    assert "--align" in done.stderr


@pytest.mark.parametrize(("align", "step"), [("16", 16), ("8", 8), ("24", 24)])
def test_widths_are_multiples_of_the_alignment(model: Path, align: str, step: int) -> None:
    called_json("compress", model, model.parent / "o.onnx", "--keep", "0.4", "--align", align)
    shapes = {t.name: list(t.dims) for t in onnx.load(model.parent / "o.onnx").graph.initializer}
    widths = [shapes["w1"][0], shapes["w2"][0], shapes["w3"][0]]
    assert all(width % step == 0 or width in (128, 160, 192) for width in widths)
    assert widths != [128, 160, 192]

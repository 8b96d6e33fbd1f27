"""The search for a keep set that is as fast as asked for, with measurements made up here: no clock is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.commands.compress import timing as timings
from leanonnx.errors import BudgetUnreachable
from leanonnx.numeric.channel_ids import Mask
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.metrics import Budget, Price
from leanonnx.selection.search import MAX_TIMINGS, within_budget, within_latency
from tests.helpers import build, called, called_json, saved
from tests.made_up_times import WIDE, Machine, measuring, selector, share_of_numbers

STEPPED = 0.88
"""Share of a latency budget that is surely used up, with widths that come in steps of 16 in four layers."""
CURVES: dict[str, Callable[[float], float]] = {
    "as predicted": lambda p: p,
    "a part that does not fall": lambda p: 0.2 + 0.8 * p,
    "better than predicted": lambda p: p**1.5,
    "worse than predicted": lambda p: p**0.7,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(WIDE), tmp_path / "wide.onnx")


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


def test_the_choice_of_the_budget_is_kept_where_nothing_is_faster(model: Path) -> None:
    chooser = selector(model, Budget("kernels", 0.8))
    machine = Machine(chooser, lambda p: 1.1 + p)
    found = within_budget(chooser, machine.predicted, machine.attempt)
    assert not found.faster
    assert found is machine.trials[0]
    assert len(machine.trials) > 1


def test_what_replaced_the_choice_of_the_budget_says_so(model: Path) -> None:
    chooser = selector(model, Budget("kernels", 0.8))
    machine = Machine(chooser, lambda p: p * 1.3)
    found = within_budget(chooser, machine.predicted, machine.attempt)
    assert found.instead_of is not None
    assert found.instead_of.selection is machine.trials[0].selection
    assert not found.instead_of.faster
    assert found.selection.after.kernels < found.instead_of.selection.after.kernels


@pytest.mark.parametrize("unit", ["kernels", "macs", "params"])
def test_a_leaner_candidate_has_less_of_what_was_asked_for(model: Path, unit: str) -> None:
    chooser = selector(model, Budget(unit, 0.8))
    machine = Machine(chooser, lambda _: 1.2)
    within_budget(chooser, machine.predicted, machine.attempt)
    costs = [chooser.price(trial.selection.alive) for trial in machine.trials]
    assert costs == sorted(set(costs), reverse=True)


def test_one_that_has_no_less_is_not_tried(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted to be faster may have more of what was asked for."""
    chooser = selector(model, Budget("kernels", 0.8))
    machine = Machine(chooser, lambda _: 1.2)
    alone = chooser.within

    def predicted_faster(fraction: float, other: Price | None = None) -> Mask:
        return alone(fraction) if other is None else chooser.dag.all_alive

    monkeypatch.setattr(chooser, "within", predicted_faster)
    chosen = within_budget(chooser, machine.predicted, machine.attempt)
    assert len(machine.trials) == 1
    assert chosen is machine.trials[0]


# The same through the command line.


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


@pytest.mark.parametrize(
    ("fraction", "words"),
    [
        (1.2, "the result is not faster than the original: slower, 0.833 times the speed"),
        (1.0, "the result is not faster than the original: no difference shown, 1.000 times the speed"),
        (0.99, "the result is not faster than the original: no difference shown, 1.010 times the speed"),
    ],
)
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
    assert words in " ".join(" ".join(text.splitlines()[1:4]).split())


def test_compress_gives_up_channels_until_it_is_faster(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(int(np.prod(t.dims)) for t in onnx.load(model).graph.initializer)
    measuring(monkeypatch, lambda path: 1.2 * share_of_numbers(whole)(path))
    row = called_json("compress", model, model.parent / "o.onnx", "--keep", "0.9", measure=True)
    assert row["latency"]["speedup"] > 1
    assert row["params"]["fraction"] < 1 / 1.2
    first = row["replaced"]
    assert first["verdict"] == "slower"
    assert row["kernels"]["after"] < first["kernels"]["after"] <= 0.9 * first["kernels"]["before"]
    (warning,) = row["warnings"]
    shares = [f"{each['kernels']['fraction']:.4f} of the kernels" for each in (first, row)]
    assert all(share in warning for share in shares)
    assert f"slower, {first['speedup']:.3f} times the speed" in warning
    page = model.parent / "page.html"
    done = called("compress", model, model.parent / "p.onnx", "--keep", "0.9", "--report", page, measure=True)
    told = "measuring replaced what the budget alone had chosen"
    assert told in done.stdout
    assert told in page.read_text()


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
    monkeypatch.setattr(timings, "profile_in_subprocess", measured)
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

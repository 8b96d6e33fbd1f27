"""The effort of a calibration and the limit on its time: what they bound, and what is said if time runs out."""

from __future__ import annotations

import math
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import leanonnx
from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.effort import DEFAULT_EFFORT, EFFORTS, Deadline
from leanonnx.errors import OptionError
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.plan import load_plan
from tests.helpers import CALIBRATION, CNN, Options, build, saved


class FakeTime:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "m.onnx")


@pytest.fixture
def options(tmp_path: Path) -> CompressOptions:
    np.savez(tmp_path / "x.npz", x=CALIBRATION)
    return Options(Budget("kernels", 0.5), calib=tmp_path / "x.npz", align=1)


def test_more_effort_is_more_of_everything() -> None:
    assert DEFAULT_EFFORT in EFFORTS and all(each.name == name for name, each in EFFORTS.items())
    rows = [astuple(each)[1:] for each in EFFORTS.values()]
    for less, more in pairwise(rows):
        assert all(a <= b for a, b in zip(less, more, strict=True)) and less != more


def test_time_that_is_left() -> None:
    now = FakeTime()
    deadline = Deadline.after(0.5, now)
    assert deadline.left() == 30.0
    now.seconds += 29
    assert (deadline.left(), deadline.has_passed) == (1.0, False)
    now.seconds += 2
    assert (deadline.left(), deadline.has_passed) == (0.0, True)


def test_time_without_a_limit() -> None:
    assert Deadline.after(None).left() == Deadline().left() == math.inf
    assert not Deadline().has_passed


@pytest.mark.parametrize("minutes", [0, -1.0, math.inf, math.nan])
def test_minutes_are_above_zero(options: CompressOptions, minutes: float) -> None:
    with pytest.raises(OptionError, match=r"minutes=.*: expected a number above 0"):
        replace(options, minutes=minutes)


def test_wrong_effort(options: CompressOptions) -> None:
    with pytest.raises(OptionError, match="effort='much': expected one of quick, normal, thorough"):
        replace(options, effort="much")


def test_minutes_without_data() -> None:
    with pytest.raises(OptionError, match=r"minutes=2: limits the time of calibration.*add calib"):
        Options(minutes=2.0)


def test_plans_record_the_effort(model: Path, options: CompressOptions, tmp_path: Path) -> None:
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    pipeline.compress_file(model, out, replace(options, effort="quick", minutes=30.0), plan)
    recorded = load_plan(plan)
    assert (recorded.options["effort"], recorded.options["minutes"]) == ("quick", 30.0)
    again = Options(plan=recorded, calib=options.calib)
    (warning,) = (one for one in pipeline.compress_file(model, out, again).warnings if "made the plan" in one)
    assert "which had effort='quick'" in warning and warning.endswith("effort='quick'")
    same = pipeline.compress_file(model, out, replace(again, effort="quick")).warnings
    assert not [one for one in same if "made the plan" in one]


def test_recovery_is_left_out_when_the_time_is_up(model: Path, options: CompressOptions, tmp_path: Path) -> None:
    result = pipeline.compress_file(model, tmp_path / "o.onnx", replace(options, minutes=1e-9))
    assert result.recovery is not None and result.recovery.recovered is None and not result.recovery.layers
    assert [one for one in result.warnings if one.startswith("recovery was left out") and "minutes=1e-09" in one]


def test_layers_for_which_no_time_is_left_stay_as_they_are(
    model: Path, options: CompressOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = FakeTime()
    monkeypatch.setattr(pipeline.Deadline, "after", lambda minutes: Deadline(now.seconds + 60 * minutes, now))

    def listener(stage: str, done: float | None = None, item: str = "") -> None:
        now.seconds += 61 * (stage == "recover" and item.startswith("layer"))

    result = pipeline.compress_file(model, tmp_path / "o.onnx", replace(options, minutes=1.0), progress=listener)
    assert result.recovery is not None
    refitted = [layer.after is not None for layer in result.recovery.layers]
    assert True in refitted and False in refitted
    assert [one for one in result.warnings if "were not refitted: the time of minutes=1" in one]


def test_effort_bounds_the_samples(model: Path, options: CompressOptions, tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", x=np.random.default_rng(0).normal(size=(200, *CALIBRATION.shape[1:])).astype("f"))
    many = replace(options, calib=tmp_path / "many.npz")
    counts = []
    for effort in ("quick", "normal"):
        recovery = pipeline.compress_file(model, tmp_path / "o.onnx", replace(many, effort=effort)).recovery
        assert recovery is not None
        counts.append(recovery.samples + recovery.held_out)
    assert counts == [128, 200]


def test_a_step_that_began_in_time_is_finished(
    model: Path, options: CompressOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = FakeTime()
    monkeypatch.setattr(pipeline.Deadline, "after", lambda minutes: Deadline(now.seconds + 60 * minutes, now))

    def listener(stage: str, done: float | None = None, item: str = "") -> None:
        now.seconds += 61 * (stage == "compare")

    result = pipeline.compress_file(model, tmp_path / "o.onnx", replace(options, minutes=1.0), progress=listener)
    assert result.recovery is not None and result.recovery.recovered is not None
    assert [one for one in result.warnings if one.startswith("calibration took longer than minutes=1")]


def test_there_is_time_by_default(model: Path, options: CompressOptions, tmp_path: Path) -> None:
    result = pipeline.compress_file(model, tmp_path / "o.onnx", options)
    assert result.plan.options["effort"] == DEFAULT_EFFORT and "minutes" not in result.plan.options
    assert not [one for one in result.warnings if "minutes" in one]


def test_python_takes_both(model: Path) -> None:
    small = leanonnx.compress(model, keep=0.5, calib={"x": CALIBRATION}, effort="thorough", minutes=60)
    assert small.plan.options["effort"] == "thorough" and small.plan.options["minutes"] == 60


def test_the_page_has_the_table() -> None:
    page = (Path(leanonnx.__file__).parents[1] / "docs" / "calibration.md").read_text(encoding="utf-8")
    for each in EFFORTS.values():
        name = f"`{each.name}`{' (the default)' if each.name == DEFAULT_EFFORT else ''}"
        assert f"| {' | '.join([name, *map(str, astuple(each)[1:])])} |" in page

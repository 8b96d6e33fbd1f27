"""The same bytes from every process, whatever its hash seed and its number of threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.determinism import CALM, JOBS, compared, differing, largest_difference, without_times, write_inputs

VARIATIONS = {"threads": CALM["2 threads"], "hash seed": CALM["hash seed 12345"]}


@pytest.mark.parametrize("job", ["calib", "int8"])
def test_model_plan_and_report_are_the_same_bytes(tmp_path: Path, job: str) -> None:
    write_inputs(tmp_path)
    row = compared(tmp_path, JOBS[job], VARIATIONS)
    assert set(row["sha256"]) == {"model", "plan", "report"} and row["different"] == {}


def test_a_difference_is_found_and_measured(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    row = compared(tmp_path, JOBS["keep"], {"another program": {"SESSION_THREADS": "many"}})
    assert row["different"] == {
        "another program": {"files": ["error", "model", "plan", "report"], "largest_relative_difference": None}
    }
    assert differing({"model": "a", "plan": "b"}, {"model": "c", "plan": "b"}) == ["model"]
    assert largest_difference(tmp_path / "m.onnx", tmp_path / "m.onnx") == 0
    assert largest_difference(tmp_path / "m.onnx", tmp_path / "plain.onnx") is None


def test_what_a_clock_measured_is_left_out() -> None:
    assert without_times({"a": [{"seconds": {"load": 1.5}, "b": 2}], "seconds": 3}) == {"a": [{"b": 2}]}

"""The gate of ``check`` on a score of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import leanonnx
from tests.helpers import called, called_json, refused
from tests.tolerated import fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with networks, inputs and scores, and a pruned network."""
    fill(tmp_path)
    leanonnx.compress(tmp_path / "m.onnx", tmp_path / "n.onnx", keep=0.1, align=1)
    return tmp_path


@pytest.mark.parametrize("function", ["by_sample", "one_number"])
def test_the_fall_of_a_score_is_judged(function: str, folder: Path) -> None:
    words = ("check", "m.onnx", "n.onnx", "--data", "m.npz", "--score", f"scores.py:{function}")
    done = called(*words, "--max-drop", 0.0001, "--min-agreement", 0.01, cwd=folder)
    assert done.returncode == 1
    result = leanonnx.check(
        folder / "m.onnx",
        folder / "n.onnx",
        data=folder / "m.npz",
        score=f"{folder / 'scores.py'}:{function}",
        max_drop=1,
        min_agreement=0.01,
    )
    gates = {verdict.gate: verdict for verdict in result.verdicts}
    drop, agreement = gates["max-drop"], gates["min-agreement"]
    assert result.passed
    assert drop.measured is not None and agreement.measured is not None
    assert drop.measured == pytest.approx(1 - agreement.measured)
    assert "with 95% certainty, 120 samples" in drop.detail
    assert list(gates).index("max-drop") == list(gates).index("min-agreement") + 1


def test_a_score_is_not_asked_for_without_its_gate(folder: Path) -> None:
    row = called_json("check", folder / "m.onnx", folder / "m.onnx", "--data", folder / "m.npz")
    assert "max-drop" not in {gate["gate"] for gate in row["gates"]}
    (folder / "g.toml").write_text("max-drop = 0.1\n")
    for words, text in (
        (("--score", "scores.py:by_sample", "--data", "m.npz"), "--score needs --max-drop; add it, for example"),
        (("--max-drop", 0.1, "--data", "m.npz"), "--max-drop needs --score; add it, for example --score scores.py:"),
        (("--gates", "g.toml", "--data", "m.npz"), "--max-drop needs --score"),
        (("--max-drop", 0.1, "--score", "scores.py:by_sample"), "there are none; add --data"),
        (("--max-drop", -1, "--score", "scores.py:by_sample"), "--max-drop -1: expected a number, for example 0.01"),
        (("--max-drop", 1, "--score", "scores.py:broken", "--data", "m.npz"), "KeyError: 'nothing'; correct"),
    ):
        refused(folder, "check", "m.onnx", "m.onnx", *words, says=(text,))

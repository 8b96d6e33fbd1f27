"""Scores of the user's own as a tolerance, and tolerances that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.errors import DataError, OptionError
from tests.helpers import called_json, refused
from tests.tolerated import COUNT, asked, fill, inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both networks, their inputs, and scores."""
    return fill(tmp_path)


# A score of the user's own


@pytest.mark.parametrize("function", ["by_sample", "one_number"])
def test_a_score_from_a_file(function: str, folder: Path) -> None:
    score = f"{folder / 'scores.py'}:{function}"
    row = called_json(*asked(folder, "m", "--score", score, "--max-drop", 0.4, "--align", 1))
    found = row["tolerance"]
    reading = found["looks"][found["chosen"]]["readings"]["max_drop"]
    assert reading["value"] < reading["bound"] <= 0.4
    if function == "by_sample":
        top1 = row["recovery"]["deviation"]["outputs"]["y"]["top1"]
        assert reading["value"] == pytest.approx(1 - top1)


def test_a_score_that_is_a_function(folder: Path) -> None:
    seen: list[dict[str, Any]] = []

    def size(path: str, data: dict[str, Any]) -> float:
        seen.append({name: array.shape for name, array in data.items()})
        return -float(len(onnx.load(path).SerializeToString()))

    with np.load(folder / "m.npz") as arrays:
        given = dict(arrays)
    result = leanonnx.compress(folder / "m.onnx", calib=given, align=1, score=size, max_drop=1.0)
    assert result.plan.options["score"] == "size"
    assert seen[0] == {"x": (40, 3, 8, 8), "labels": (40,), "weight": (40,)}
    assert {shapes["x"][0] for shapes in seen} == {40, 4, 3}


# What is refused

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no samples": ({"min_agreement": 0.9, "calib": None}, OptionError, "min_agreement is met on real inputs, .* calib"),
    "drop alone": ({"max_drop": 0.1}, OptionError, "max_drop needs score; add it, for example score='scores.py:acc"),
    "score alone": ({"score": "s.py:f"}, OptionError, "score needs max_drop; add it, for example max_drop=0.01"),
    "all of it": ({"min_agreement": 1}, OptionError, "min_agreement=1: expected a share above 0 and below 1"),
    "a negative": ({"max_deviation": -1}, OptionError, "max_deviation=-1: expected a number above 0"),
    "no number": (
        {"min_psnr": np.nan},
        OptionError,
        "min_psnr=nan: expected a number above 0, .* min_psnr=40",
    ),
    "no drop": ({"score": "s.py:f", "max_drop": 0}, OptionError, "max_drop=0: expected a number above 0"),
    "exact": ({"min_agreement": 0.9, "exact": True, "calib": None}, OptionError, "exact=True says it; leave out one"),
    "minimised": ({"keep": 0.5, "minimise": "macs"}, OptionError, "minimise='macs' belongs to a tolerance; add one"),
    "no metric": ({"min_agreement": 0.9, "minimise": "params"}, OptionError, "expected one of latency, macs, bytes"),
    "too few": (
        {"min_agreement": 0.99},
        DataError,
        "by 40 held-out samples of 120, even if all agree: 388 are needed; "
        "give at least 1164 samples in calib, or ask for min_agreement=0.907",
    ),
    "two budgets": ({"min_agreement": 0.6, "keep": 0.5, "macs": 0.5}, OptionError, "give exactly one of"),
    "no module": ({"score": "nowhere:f", "max_drop": 1}, OptionError, "score='nowhere:f': nowhere cannot be read"),
    "no function": ({"score": "json:f", "max_drop": 1}, OptionError, "score='json:f': json has no function 'f'"),
    "no colon": ({"score": "json", "max_drop": 1}, OptionError, "expected a module or a Python file and a function"),
    "broken": ({"score": "scores.py:broken", "max_drop": 1}, OptionError, "failed on m.onnx: KeyError: 'nothing'"),
    "wrong": ({"score": "scores.py:wrong", "max_drop": 1}, OptionError, "3 numbers for 40 samples; return one number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tolerances(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, error, text = WRONG[name]
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=text):
        leanonnx.compress("m.onnx", **{"calib": "m.npz", "align": 1, **given})


NO_NUMBER: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no decisions": ("--min-agreement 0.6", lambda folder: folder / "i", "use --max-deviation"),
    "no image": ("--min-psnr 30", lambda folder: folder / "m", "no output of the model is an image"),
}


@pytest.mark.parametrize("name", NO_NUMBER)
def test_numbers_that_the_outputs_do_not_have(name: str, folder: Path) -> None:
    words, place, text = NO_NUMBER[name]
    stem = place(folder)
    refused(
        folder, "compress", f"{stem}.onnx", "o.onnx", "--calib", f"{stem}.npz", *words.split(), code=2, says=(text,)
    )


def test_a_plan_says_how_much_to_remove(folder: Path) -> None:
    called_json("compress", folder / "m.onnx", folder / "o.onnx", "--keep", 0.5, "--plan-out", folder / "p.json")
    words = ("--plan", "p.json", "--min-agreement", 0.5, "--calib", "m.npz")
    refused(folder, "compress", "m.onnx", "again.onnx", *words, says=("--plan says it; leave out one",))
    refused(
        folder, *asked(folder, "m", "--min-agreement", 0.5, "--minimise", "latency"), says=("leave out --no-measure",)
    )


def test_decisions_that_do_not_depend_on_the_sample_show_nothing(folder: Path) -> None:
    np.savez(folder / "same.npz", x=np.repeat(inputs((3, 8, 8))[:1], COUNT, 0))
    words = ("--calib", "same.npz", "--min-agreement", 0.5)
    refused(folder, "compress", "m.onnx", "o.onnx", *words, says=("decides the same on all held-out samples",))

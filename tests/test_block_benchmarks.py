"""The benchmarks of blocks and of tolerances: their inputs, their score of boxes, and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.blocks import experiment, page
from benchmarks.material import Material, worst_of
from benchmarks.tolerance import boxes, inputs
from benchmarks.tolerance import page as tolerances

SIDE = 64
PLACES = sum((SIDE // stride) ** 2 for stride in boxes.STRIDES)


def reported(relative: float, top1: float | None, channel: float | None, vacuous: str | None = None) -> dict[str, Any]:
    worst = None if channel is None else {"axis": 1, "index": 0, "relative_l2": channel}
    return {"relative_l2": relative, "psnr": None, "top1": top1, "worst_channel": worst, "vacuous": vacuous}


def unseen(**numbers: Any) -> dict[str, Any]:
    return {"unseen": {"agreement": None, "relative_l2": 0.5, **numbers}}


def detector_output(*found: tuple[int, int, float]) -> np.ndarray[Any, Any]:
    """One image's output with boxes of 16 pixels: place in the first grid, class, confidence."""
    rows = np.zeros((PLACES, 5 + 3), np.float32)
    for place, kind, sure in found:
        rows[place, 2:4] = np.log(2)
        rows[place, 4] = sure
        rows[place, 5 + kind] = 1
    return rows


def test_numbers_are_those_of_the_worst_output() -> None:
    outputs = {"a": reported(0.1, 0.9, 0.4), "b": reported(0.2, 0.8, None), "c": reported(0.0, 0.1, None, "constant")}
    assert worst_of(outputs) == {"agreement": 0.8, "relative_l2": 0.2, "deviation": 0.4, "psnr": None}


def test_networks_are_compared_by_the_best_number_there_is() -> None:
    assert page.goodness(unseen(accuracy=[0.9, 0.7], agreement=0.8)) == 0.7
    assert page.goodness(unseen(agreement=0.8)) == 0.8
    assert page.goodness(unseen()) == -0.5
    assert page.goodness({"exit_code": 1}) is None
    assert page.score({"exit_code": 1}) == "exit 1"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> None:
    """One network at two budgets: equal times at the first; at the second channels alone were asked again."""
    rows = [
        {"network": "n", "budget": "latency", "ratio": ratio, "way": way, "removed_branches": ["a"]}
        | unseen(agreement=share)
        | {"held_out": {"outputs": {"y": reported(0.1, 0.8 if (ratio, way) == (0.5, page.BLOCKS) else 0.9, None)}}}
        for ratio, way, share in (
            (0.5, page.CHANNELS, 0.90),
            (0.5, page.BLOCKS, 0.95),
            (0.25, page.CHANNELS, 0.9),
            (0.25, page.MATCHED, 0.7),
            (0.25, page.BLOCKS, 0.6),
        )
    ]
    ms = {page.ORIGINAL: [3.9, 4.0, 4.2], page.CHANNELS: [1.9, 2.0, 2.1], page.BLOCKS: [1.9, 2.0, 2.2]}
    times = [{"network": "n", "budget": "latency", "ratio": 0.5, "ms": ms}]
    monkeypatch.setattr(page, "load", lambda _: {"rows": rows, "times": times, "tuned": []})


@pytest.mark.usefixtures("results")
def test_equal_time_takes_the_channels_that_were_asked_again() -> None:
    assert page.equal_time() == [(("n", "latency", 0.5), 0.9, 0.95), (("n", "latency", 0.25), 0.7, 0.6)]
    assert page.blocks_verdict() == (
        "At equal time, networks without some blocks are better in 1 of 2 cells, and worse for n at 0.25. By the "
        "held-out samples of the reports they are worse for n at 0.5 of latency, of 2 cells at equal budgets."
    )
    assert "| n, 0.5 | 90.00 | 2.00 | 95.00 | 2.00 | 1 | +5.00 |" in page.blocks_equal()
    assert "| n, 0.5 |  | 90.00 | 2.000 (1.900–2.100) |" in page.blocks_latency()


def test_channels_alone_are_asked_again_until_the_times_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = experiment.Cell(network="n", budget="latency", ratio=0.5, way=page.CHANNELS)
    milliseconds = {page.CHANNELS: [2.0, 3.0, 2.04], page.BLOCKS: [2.0] * 3}
    asked: list[float] = []

    def timed(files: dict[str, Path], _: float) -> dict[str, list[float]]:
        return {way: [0.0, milliseconds[way][len(asked)], 0.0] for way in files}

    def compressed(_: Material, __: experiment.Cell, fraction: float, target: Path) -> dict[str, Any]:
        asked.append(fraction)
        target.write_text(str(fraction))
        return {"asked": fraction}

    monkeypatch.setattr(experiment, "milliseconds", timed)
    monkeypatch.setattr(experiment, "compressed", compressed)
    material = Material(tmp_path, tmp_path, tmp_path)
    assert experiment.matched(material, cell, {"asked": 0.5}, 1.0) is None
    milliseconds[page.CHANNELS][0] = 1.0
    found = experiment.matched(material, cell, {"asked": 0.4}, 1.0)
    assert asked == [pytest.approx(0.8), pytest.approx(0.8 * 2 / 3)]
    assert found == {**cell.key, "way": page.MATCHED, "asked": pytest.approx(0.8 * 2 / 3)}
    assert (tmp_path / f"n_latency_0.5_{page.MATCHED}.onnx").read_text() == str(asked[1])


def test_boxes_of_a_detector() -> None:
    """A second box of one object is dropped, and so is one of little confidence; one of another class is not."""
    output = detector_output((9, 0, 0.9), (10, 0, 0.8), (25, 1, 0.7), (40, 2, 0.1))
    output[64] = [0.5, 0.5, 0, 0, 0.6, 1, 0, 0]
    found = boxes.boxes_of(output, SIDE)
    assert np.allclose(found, [[0, 0, 0, 16, 16], [0, 8, 0, 24, 16], [1, 0, 16, 16, 32]], atol=1e-5)
    output[64, 5:] = [0, 1, 0]
    assert boxes.boxes_of(output, SIDE)[:, 0].tolist() == [0, 0, 1, 1]
    same = boxes.boxes_of(detector_output((9, 0, 0.9)), SIDE)
    assert boxes.agreement(same, found) == pytest.approx(2 / 4)
    assert boxes.agreement(found, found) == 1
    assert boxes.agreement(same[:0], same[:0]) == 1
    assert boxes.agreement(np.array([[1.0, 0, 0, 16, 16]]), same) == 0


@pytest.mark.parametrize(("originals", "copies"), [(3, 4), (9, 2), (100, 5)])
def test_copies_of_one_original_are_all_held_out_or_none(originals: int, copies: int) -> None:
    places = list(inputs.grouped(originals, copies))
    assert len(places) == originals // inputs.PERIOD * inputs.PERIOD * copies
    assert all(places.count(k) == copies for k in set(places))
    assert all(at % inputs.PERIOD == k % inputs.PERIOD for at, k in enumerate(places))


def test_targets_hold_on_their_side() -> None:
    assert tolerances.target_holds("min-agreement", 0.97, 0.97)
    assert not tolerances.target_holds("min-psnr", 37.9, 38)
    assert tolerances.target_holds("max-deviation", 0.1, 0.2)
    assert not tolerances.target_holds("max-drop", 0.3, 0.2)


def test_refusals_are_told_and_do_not_count_as_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"network": name, "option": "min-agreement", "limit": 0.97, "way": way, "seconds": 60, **told}
        for name, way, told in (
            ("a", tolerances.AIMED, {"holds": True, "unseen": 0.98, "macs": 0.5, "speedup": 2.0, "recoveries": 4}),
            ("a", tolerances.HAND, {"holds": False, "unseen": 0.96, "macs": 0.4, "speedup": 2.5, "recoveries": 8}),
            ("b", tolerances.AIMED, {"exit_code": 1, "message": "no"}),
        )
    ]
    monkeypatch.setattr(tolerances, "load", lambda _: {"rows": rows})
    assert "| 0.400 | 2.50 | 0.96 (missed) | 8 | 1.0 |" in tolerances.tolerance_cells()
    verdict = tolerances.tolerance_verdict()
    assert "in 1 of 1 (100%) cells, by hand in 0 of 1 (0%)" in verdict
    assert verdict.endswith("ratio of the speed-ups: 0.80. Nothing was written for b.")

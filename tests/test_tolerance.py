"""A tolerance as the target of ``compress``: the least of a model that is within it, by bounds on samples held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx.commands.compress import tolerance as stages
from leanonnx.commands.compress.judges import JUDGED_RATE, split_for_judging
from leanonnx.data.samples import open_data
from leanonnx.effort import EFFORTS
from leanonnx.errors import Refusal, ToleranceMissed
from leanonnx.evaluation.deviation import compare_outputs
from leanonnx.evaluation.tolerances import HeldOut, Tolerances, read_tolerances
from leanonnx.graph.model import load
from leanonnx.reporting.remarks import tolerance_text
from tests.helpers import called, called_json, saved, tree
from tests.tolerated import COUNT, asked, fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both networks, their inputs, and scores."""
    return fill(tmp_path)


# The bounds on samples


def test_the_numbers_are_those_of_check(folder: Path) -> None:
    """Agreement, deviation and PSNR of the samples together are those of the comparison that ``check`` makes."""
    for name in ("m", "i"):
        source, small = folder / f"{name}.onnx", folder / "small.onnx"
        leanonnx.compress(source, small, keep=0.3, align=1)
        model = load(source)
        data = open_data(folder / f"{name}.npz", model, {"x": (1, 3, 8, 8)})
        whole, one_by_one = compare_outputs(model, source, [small], data, 7), HeldOut(model, data, {}, frozenset())
        fidelity, deviations = one_by_one.compare(small)
        (mine,), (theirs,) = fidelity.outputs, whole[0].outputs
        for number in ("relative_l2", "worst", "psnr", "top1"):
            pair = getattr(mine, number), getattr(theirs, number)
            assert pair == (None, None) or pair[0] == pytest.approx(pair[1], rel=1e-6)
        limits = {"m": Tolerances(min_agreement=0.5, max_deviation=1), "i": Tolerances(max_deviation=1, min_psnr=1)}
        readings = {r.name: r for r in read_tolerances(limits[name], fidelity, deviations, 0.01)}
        values = {"min_agreement": mine.top1, "max_deviation": mine.worst, "min_psnr": mine.psnr}
        assert {key: each.value for key, each in readings.items()} == {key: values[key] for key in readings}
        for reading in readings.values():
            assert (reading.bound < reading.value) == reading.name.startswith("min")


def test_samples_of_a_fixed_batch_are_counted_one_by_one(folder: Path) -> None:
    model = load(folder / "m.onnx")
    batch = onnx.ModelProto.FromString(model.proto.SerializeToString())
    for value in (*batch.graph.input, *batch.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    fixed = load(saved(batch, folder / "fixed.onnx"))
    small = leanonnx.compress(folder / "fixed.onnx", folder / "small.onnx", keep=0.3, align=1)
    assert small.proof.passed
    data = open_data(folder / "m.npz", fixed, {"x": (4, 3, 8, 8)})
    fidelity, (deviation,) = HeldOut(fixed, data, {}, frozenset()).compare(folder / "small.onnx")
    assert len(deviation.same) == COUNT == fidelity.samples
    assert set(deviation.choices) == {1.0}


@pytest.mark.parametrize("count", [60, 1000, 2047, 2048, 5000, 100_000])
def test_no_sample_judges_what_it_was_used_for(count: int, folder: Path) -> None:
    few = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, 8, 8))
    data = open_data({"x": few}, load(folder / "m.onnx"), {"x": (1, 3, 8, 8)})
    effort = EFFORTS["normal"]
    fitted, judging = split_for_judging(data, data, effort)
    used = [{float(feed["x"][0, 0, 0, 0]) for feed in part.feeds()} for part in (fitted, judging)]
    assert not used[0] & used[1]
    assert len(used[1]) >= count // JUDGED_RATE or len(used[1]) >= 4000
    assert len(used[0]) >= min(effort.max_samples, count // 2)


# The search


def test_the_least_within_an_agreement(folder: Path) -> None:
    row = called_json(*asked(folder, "m", "--min-agreement", "0.6", "--align", 1))
    found = row["tolerance"]
    chosen = found["looks"][found["chosen"]]
    assert (found["unit"], found["samples"], found["allowed"], found["met"]) == ("macs", COUNT // 3, 6, True)
    assert chosen["readings"]["min_agreement"]["bound"] >= 0.6
    assert chosen["fraction"] == min(look["fraction"] for look in found["looks"] if look["met"])
    assert chosen["macs"] == pytest.approx(row["macs"]["after"] / row["macs"]["before"])
    assert chosen["fraction"] < 0.6
    assert row["recovery"]["held_out"] == COUNT // 3
    output = row["recovery"]["deviation"]["outputs"]["y"]
    assert output["top1"] == chosen["readings"]["min_agreement"]["value"]
    assert row["proof"]["status"] == "passed"


@pytest.mark.parametrize("name", ["max_deviation", "min_psnr"])
def test_the_least_of_an_image_network(name: str, folder: Path) -> None:
    limit = {"max_deviation": 0.2, "min_psnr": 25.0}[name]
    given: dict[str, Any] = {name: limit}
    result = leanonnx.compress(folder / "i.onnx", calib=folder / "i.npz", align=1, **given)
    row = result.report.tolerance
    assert row is not None and row.met
    reading = row.looks[row.chosen].readings[name]
    assert reading.bound is not None
    assert reading.bound >= limit if name == "min_psnr" else reading.bound <= limit
    assert result.macs.fraction < 0.9
    assert result.deviation is not None
    assert reading.value == pytest.approx(
        getattr(result.deviation.outputs[0], "psnr" if name == "min_psnr" else "worst")
    )


def test_all_tolerances_hold_together(folder: Path) -> None:
    results = [
        leanonnx.compress(folder / "m.onnx", calib=folder / "m.npz", align=1, **limits)
        for limits in ({"min_agreement": 0.6}, {"min_agreement": 0.6, "max_deviation": 0.15})
    ]
    loose, tight = (result.report.tolerance for result in results)
    assert loose and tight and loose.met and tight.met
    assert set(tight.looks[0].readings) == {"min_agreement", "max_deviation"}
    assert tight.looks[tight.chosen].fraction >= loose.looks[loose.chosen].fraction


@pytest.mark.parametrize(("option", "key"), [("--keep", "kernels"), ("--macs", "macs"), ("--params", "params")])
def test_a_budget_holds_as_well(option: str, key: str, folder: Path) -> None:
    row = called_json(*asked(folder, "m", "--max-deviation", 5, option, 0.4, "--align", 1))
    assert row[key]["after"] <= 0.4 * row[key]["before"]
    assert (row["tolerance"]["met"], row["tolerance"]["unit"]) == (True, key)
    done = called(*asked(folder, "m", "--max-deviation", 0.0001, option, 0.4, "--align", 1))
    assert done.returncode == 1
    assert "nothing pruned was shown to be within the tolerances: the nearest has 0." in done.stderr


@pytest.mark.parametrize("unit", ["macs", "bytes"])
def test_what_is_made_small(unit: str, folder: Path) -> None:
    plan = folder / "p.json"
    row = called_json(*asked(folder, "m", "--max-deviation", 0.3, "--minimise", unit, "--align", 1, "--plan-out", plan))
    assert row["tolerance"]["unit"] == unit
    options = json.loads(plan.read_text())["options"]
    assert (options["minimise"], options["max_deviation"], "kernels" in options) == (unit, 0.3, False)
    assert row["macs"]["after"] / row["macs"]["before"] == pytest.approx(options["macs"])
    again = called_json("compress", folder / "m.onnx", folder / "again.onnx", "--plan", plan)
    assert again["kernels"] == row["kernels"]
    assert again["tolerance"] is None


def test_statistics_and_ranking_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, judged = [], []
    from leanonnx.commands.compress import choosing

    real = choosing._statistics
    monkeypatch.setattr(choosing, "_statistics", lambda *given: made.append(1) or real(*given))
    recover = stages.recover_weights
    monkeypatch.setattr(stages, "recover_weights", lambda candidate: judged.append(1) or recover(candidate))
    result = leanonnx.compress(folder / "m.onnx", calib=folder / "m.npz", align=1, min_agreement=0.7, effort="quick")
    assert result.report.tolerance is not None
    assert (len(made), len(judged)) == (1, len(result.report.tolerance.looks))
    assert len(judged) <= EFFORTS["quick"].looks


def test_nothing_within_the_tolerances_writes_nothing_but_the_nearest_by_best_effort(folder: Path) -> None:
    before = tree(folder)
    with pytest.raises(ToleranceMissed, match=r"the nearest has .* deviation .* at most .*1e-06 asked for") as caught:
        leanonnx.compress(folder / "m.onnx", folder / "o.onnx", calib=folder / "m.npz", align=1, max_deviation=1e-6)
    assert isinstance(caught.value, Refusal) and caught.value.code == 1
    assert tree(folder) == before
    result = leanonnx.compress(
        folder / "m.onnx", calib=folder / "m.npz", align=1, max_deviation=1e-6, best_effort=True, effort="quick"
    )
    row = result.report.tolerance
    assert row is not None and not row.met and row.ended
    assert f"; the search ended as {row.ended}" in str(result.warnings)
    assert any("nothing pruned was shown to be within" in text for text in result.warnings)
    worst = [look.readings["max_deviation"].bound or np.inf for look in row.looks]
    assert worst[row.chosen] == min(worst)


def test_a_budget_out_of_reach_is_refused(folder: Path) -> None:
    done = called(*asked(folder, "m", "--min-agreement", 0.6, "--keep", 0.001, "--align", 1))
    assert done.returncode == 1
    assert "0.001 of the kernels was asked for" in done.stderr


def test_time_that_is_up_ends_the_search(folder: Path) -> None:
    result = leanonnx.compress(
        folder / "m.onnx", calib=folder / "m.npz", align=1, max_deviation=5, minutes=1e-6, recover="none"
    )
    row = result.report.tolerance
    assert row is not None and row.ended is not None
    assert len(row.looks) == 1
    assert "too little time was left" in row.ended
    assert "; ended after 1: too little time was left for another look" in tolerance_text(row)


def test_terminal_and_page_show_the_curve(folder: Path) -> None:
    done = called(*asked(folder, "m", "--min-agreement", "0.6", "--align", 1, "--report", folder / "r.html"))
    assert done.returncode == 0
    assert "Tolerances on 40 held-out samples that nothing else has seen" in done.stdout
    assert done.stdout.count("◄ taken") == 1
    page = (folder / "r.html").read_text()
    assert page.count('<span class="pill">taken</span>') == 1
    assert "95% sure for all of at most 6 looks" in page


# A sweep


def test_a_sweep_names_the_least_point_within(folder: Path) -> None:
    words = ("sweep", folder / "m.onnx", "--macs", "0.8,0.5,0.1", "--align", 1, "--no-measure", "--out", folder / "s")
    done = called(*words, "--calib", folder / "m.npz", "--max-deviation", 0.05)
    assert done.returncode == 0
    (curve,) = json.loads((folder / "s" / "sweep.json").read_text())["models"]
    met = [point["asked"] for point in curve["points"] if point["tolerance"]["met"]]
    assert met and len(met) < 3
    assert curve["least"] == {"asked": min(met), "axis": "macs"}
    assert "meets" in done.stdout
    assert f"Least multiply-adds within the tolerances: --macs {min(met)}." in done.stdout
    cells = [line.split(",") for line in (folder / "s" / "sweep.csv").read_text().splitlines()]
    place = cells[0].index("meets")
    assert [line[place] for line in cells[1:]] == [str(int(asked in met)) for asked in (0.8, 0.5, 0.1)]
    curves = leanonnx.sweep(
        folder / "m.onnx", folder / "t", macs=[0.8, 0.1], calib=folder / "m.npz", align=1, max_deviation=1e-6
    )
    assert [point.meets for point in curves.points] == [False, False]
    assert curves.report.models[0].least is not None
    assert curves.report.models[0].least.asked is None

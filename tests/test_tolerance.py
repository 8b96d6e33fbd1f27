"""A tolerance as the target of ``compress``: the least of a model that is within it, by bounds on samples held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import leanonnx
from leanonnx.commands.compress import tolerance as stages
from leanonnx.commands.compress.judges import JUDGED_RATE, split_for_judging
from leanonnx.data.samples import open_data
from leanonnx.effort import EFFORTS
from leanonnx.errors import DataError, OptionError, Refusal, ToleranceMissed
from leanonnx.evaluation.deviation import compare_outputs
from leanonnx.evaluation.tolerances import HeldOut, Tolerances, read_tolerances
from leanonnx.graph.model import load
from tests.calibrated import net
from tests.helpers import called, called_json, refused, saved, tree

COUNT = 120
"""Samples of a network; one in three judges."""
SCORES = """
import numpy as np
import onnxruntime as ort

def outputs(path, data):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": row[None]})[0] for row in data["x"]])

def by_sample(path, data):
    return (outputs(path, data).argmax(1) == data["labels"]).astype(float)

def one_number(path, data):
    return float(by_sample(path, data).mean() * data["weight"].mean())

def broken(path, data):
    return data["nothing"]

def wrong(path, data):
    return np.zeros(3)
"""


def doubled(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The network with each second output of some layers a scaled copy of the one before: half of them can go."""
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            value = numpy_helper.to_array(tensor).copy()
            value[1::2] = 0.7 * value[::2]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return proto


def classifier() -> onnx.ModelProto:
    return doubled(
        net(
            "(float[N,3,8,8] x) => (float[N,5] y)",
            "float[16,3,3,3] w1, float[16] b1, float[12,16,3,3] w2, float[12] b2, float[5,12] w3, float[5] b3",
            "h = Conv (x, w1, b1) r = Relu (h) g = Conv (r, w2, b2) s = Relu (g) p = GlobalAveragePool (s) "
            "f = Flatten (p) y = Gemm <transB = 1> (f, w3, b3)",
        ),
        *("w1", "b1", "w2", "b2"),
    )


def imager() -> onnx.ModelProto:
    return doubled(
        net(
            "(float[N,1,12,12] x) => (float[N,1,12,12] y)",
            "float[16,1,3,3] w1, float[16] b1, float[1,16,3,3] w2",
            "h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (h) y = Conv <pads = [1, 1, 1, 1]> (r, w2)",
        ),
        *("w1", "b1"),
    )


def inputs(shape: tuple[int, ...], count: int = COUNT) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, (count, *(1 for _ in shape)))
    return (scale * rng.standard_normal((count, *shape)) + rng.standard_normal((count, shape[0], 1, 1))).astype("f4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both networks, their inputs, and scores."""
    saved(classifier(), tmp_path / "m.onnx")
    saved(imager(), tmp_path / "i.onnx")
    x = inputs((3, 8, 8))
    labels = np.concatenate(
        [np.argmax(leanonnx_run(tmp_path / "m.onnx", row[None]), 1) for row in x],
    )
    np.savez(tmp_path / "m.npz", x=x, labels=labels, weight=np.ones(COUNT, np.float32))
    np.savez(tmp_path / "i.npz", x=inputs((1, 12, 12)))
    (tmp_path / "scores.py").write_text(SCORES)
    return tmp_path


def leanonnx_run(path: Path, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime as ort

    (output,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": value})
    return np.asarray(output)


def asked(folder: Path, name: str, *options: object) -> tuple[object, ...]:
    """The words of a compression of one of the networks."""
    return ("compress", folder / f"{name}.onnx", folder / "o.onnx", "--calib", folder / f"{name}.npz", *options)


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
    assert row["tolerance"]["met"]
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
    assert row is not None and not row.met
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
    assert result.report.tolerance is not None
    assert len(result.report.tolerance.looks) == 1


def test_terminal_and_page_show_the_curve(folder: Path) -> None:
    done = called(*asked(folder, "m", "--min-agreement", "0.6", "--align", 1, "--report", folder / "r.html"))
    assert done.returncode == 0
    assert "Tolerances on 40 held-out samples that nothing else has seen" in done.stdout
    assert done.stdout.count("◄ taken") == 1
    page = (folder / "r.html").read_text()
    assert page.count('<span class="pill">taken</span>') == 1
    assert "95% sure for all of at most 6 looks" in page


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
        "by 40 held-out samples of 120, even if all agree: 477 are needed; "
        "give at least 1431 samples in calib, or ask for min_agreement=0.887",
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

"""Cross-fitting: with few samples the deviation is measured on all of them, each by weights fitted to the others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from leanonnx.analysis.cost import cost_model
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.data.samples import Dataset, open_data
from leanonnx.effort import EFFORTS, Deadline, Effort
from leanonnx.recovery import draft as drafts
from leanonnx.recovery.crossfit import CROSS_FIT_PARTS, CROSS_FITTED_BELOW, MAX_CROSS_FIT_MACS, cross_fit_parts
from leanonnx.recovery.draft import Recovery, recover_from_data
from leanonnx.recovery.passes import recover_in_passes
from leanonnx.recovery.recover import RecoveryResult
from leanonnx.system.clock import Clock, ignore_progress
from tests.calibrated import draft as pruned
from tests.calibrated import keep, net, smooth_images
from tests.helpers import called_json, cli, saved

MODEL = net(
    "(float[N,3,8,8] x) => (float[N,6] y)",
    "float[16,3,3,3] a, float[16] b, float[12,16,3,3] c, float[12] d, float[12,6] e, float[6] f",
    """h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m) g = GlobalAveragePool (s) k = Flatten (g)
    y = Gemm (k, e, f)""",
)
FRESH = 2000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier, and few inputs."""
    saved(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "few.npz", x=smooth_images(24))
    return tmp_path


def agreement(folder: Path, x: np.ndarray[Any, Any]) -> float:
    """Share of the decisions of the original that the result makes as well."""
    first, second = (
        ort.InferenceSession(str(folder / name)).run(None, {"x": x})[0].argmax(1) for name in ("m.onnx", "o.onnx")
    )
    return float((first == second).mean())


def test_the_report_says_how_all_samples_were_used(folder: Path) -> None:
    command = ("compress", folder / "m.onnx", folder / "o.onnx", "--align", 1, "--keep", 0.25, "--calib")
    row = called_json(*command, folder / "few.npz")["recovery"]
    assert (row["samples"], row["held_out"], row["parts"]) == (20, 4, CROSS_FIT_PARTS)
    assert row["deviation"]["samples"] == row["removed"]["samples"] == 24
    low, high = row["deviation"]["outputs"]["y"]["intervals"]["top1"]
    assert low < agreement(folder, smooth_images(FRESH, 99)) < high
    shown = cli(*command, folder / "few.npz", "--report", folder / "page.html")
    words = f"all 24 samples by cross-fitting over {CROSS_FIT_PARTS} parts"
    assert f"Deviation from the original on {words}, before → after recovery" in shown.stdout
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert f"On {words}, the output deviates" in page
    assert f"on {words} (each part by weights that were fitted to the others)" in page


def test_twice_the_same_bytes_and_report(folder: Path) -> None:
    made = []
    for _ in range(2):
        command = ("compress", folder / "m.onnx", folder / "o.onnx", "--align", 1, "--keep", 0.25)
        row = called_json(*command, "--calib", folder / "few.npz")
        made.append((row["recovery"], (folder / "o.onnx").read_bytes()))
    assert made[0] == made[1] and made[0][0]["parts"]


def test_unchanged_weights_are_compared_on_all_samples(folder: Path) -> None:
    command = ("compress", folder / "m.onnx", folder / "o.onnx", "--align", 1, "--keep", 0.5, "--recover", "none")
    row = called_json(*command, "--calib", folder / "few.npz")["recovery"]
    assert (row["samples"], row["held_out"], row["parts"], row["deviation"]["samples"]) == (0, 24, 0, 24)


@pytest.mark.parametrize("option", [("--effort", "quick"), ("--int8",), ("--max-deviation", 9), ("--teacher", "m")])
def test_others_keep_their_own_split(folder: Path, option: tuple[object, ...]) -> None:
    source, result = folder / "m.onnx", folder / "o.onnx"
    options = (*option, "--keep", 0.5, "--align", 1)
    if option[0] == "--teacher":
        saved(pruned(load_dag(source), keep(load_dag(source), "h", range(0, 16, 3))), folder / "thin.onnx")
        source, options = folder / "thin.onnx", ("--teacher", source)
    row = called_json("compress", source, result, "--calib", folder / "few.npz", "--no-measure", *options)["recovery"]
    assert row["parts"] == 0 and row["deviation"]["samples"] < 24


class Case:
    """A pruned network with its data, to be recovered under various limits."""

    def __init__(self, folder: Path, samples: int, seed: int = 0) -> None:
        self.folder, self.dag = folder, load_dag(folder / "m.onnx")
        self.alive = keep(self.dag, "h", range(0, 16, 3))
        saved(pruned(self.dag, self.alive), folder / "pruned.onnx")
        self.data = open_data({"x": smooth_images(samples, seed)}, self.dag.model, self.dag.shapes)

    def recover(self, **options: Any) -> tuple[Recovery, bytes]:
        """The recovery, and the file that it has written."""
        source, target = self.folder / "pruned.onnx", self.folder / "recovered.onnx"
        clock = Clock(ignore_progress)
        evidence = recover_from_data(self.dag, self.alive, source, target, self.data, True, 0, clock, **options)
        return evidence, target.read_bytes()


@pytest.mark.parametrize("few", [12, 30])
def test_the_agreement_is_nearer_to_that_on_fresh_samples(folder: Path, few: int) -> None:
    """Root mean square error of the agreement over seeds, against that of the samples held out from the fit."""
    errors = []
    for seed in range(8):
        case = Case(folder, few, seed)
        evidence, _ = case.recover(cross_fits=True)
        shutil.copyfile(folder / ("recovered.onnx" if evidence.kept else "pruned.onnx"), folder / "o.onnx")
        truth, spared = (
            agreement(folder, smooth_images(FRESH, 1000 + seed)),
            agreement(folder, smooth_images(few, seed)[4::5]),
        )
        reported = evidence.final.outputs[0].top1
        assert reported is not None and evidence.final.samples == few
        errors.append([reported - truth, spared - truth])
    cross_fitted, held_out = np.sqrt(np.square(errors).mean(0))
    assert cross_fitted < 0.8 * held_out


@pytest.mark.parametrize("count", [24, CROSS_FITTED_BELOW, 420])
def test_the_written_weights_are_those_of_the_usual_fit(folder: Path, count: int) -> None:
    case = Case(folder, count)
    (usual, before), (new, after) = case.recover(), case.recover(cross_fits=True)
    assert before == after
    if count >= CROSS_FITTED_BELOW:
        assert new == usual
        return
    assert (new.parts, new.final.samples, usual.parts, usual.final.samples) == (CROSS_FIT_PARTS, count, 0, count // 5)
    assert replace(new, parts=0, removed=usual.removed, recovered=usual.recovered, kept=usual.kept) == usual


@pytest.mark.parametrize(
    ("seconds", "fits", "parts"),
    [([1] * 6, 6, CROSS_FIT_PARTS), ([1, 1, 999], 3, 0), ([30], 1, 0)],
    ids=["in time", "time up in between", "first fit too slow"],
)
def test_the_usual_way_is_taken_if_time_is_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: list[float], fits: int, parts: int
) -> None:
    case, now, costs = Case(folder, 24), [0.0], iter(seconds)
    made = []

    def timed(*args: Any, **kwargs: Any) -> RecoveryResult:
        made.append(recover_in_passes(*args, **kwargs))
        now[0] += next(costs)
        return made[-1]

    usual, _ = case.recover()
    monkeypatch.setattr(drafts, "recover_in_passes", timed)
    evidence, _ = case.recover(cross_fits=True, deadline=Deadline(100.0, lambda: now[0]))
    assert (len(made), evidence.parts) == (fits, parts)
    assert parts or evidence == usual


def test_parts_are_bounded_in_samples_and_work(folder: Path) -> None:
    dag = Case(folder, 24).dag
    macs = cost_model(dag)(dag.all_alive).macs

    def parts(count: int, effort: Effort = EFFORTS["normal"], fixed: int | None = None) -> int:
        data = open_data({"x": smooth_images(count)}, dag.model, dag.shapes)
        return len(cross_fit_parts(dag, replace(data, fixed_batch=fixed), effort))

    assert [parts(count) for count in (4, 5, 319, 320)] == [0, CROSS_FIT_PARTS, CROSS_FIT_PARTS, 0]
    assert [parts(24, fixed=batch) for batch in (4, 5)] == [CROSS_FIT_PARTS, 0]
    share = 24 * macs / MAX_CROSS_FIT_MACS
    assert [parts(24, replace(EFFORTS["normal"], trial_work=work * share)) for work in (0, 0.99, 1)] == [0, 0, 5]


def test_no_sample_is_in_the_part_that_it_is_fitted_for(folder: Path) -> None:
    case = Case(folder, 23)
    whole = rows(case.data)
    parts = [[rows(side) for side in pair] for pair in cross_fit_parts(case.dag, case.data, EFFORTS["normal"])]
    assert all(others | part == whole and not others & part for others, part in parts)
    assert sum(len(part) for _, part in parts) == len(whole) == 23
    assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 1


def test_a_recovery_that_harms_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples held out by themselves would say otherwise: only the parts see the damage."""
    case, made = Case(folder, 24), []

    def harmful(*args: Any, **kwargs: Any) -> RecoveryResult:
        fit = recover_in_passes(*args, **kwargs)
        made.append(fit)
        for tensor in fit.proto.graph.initializer if len(made) > 1 else ():
            tensor.CopyFrom(numpy_helper.from_array(-3 * numpy_helper.to_array(tensor), tensor.name))
        return fit

    monkeypatch.setattr(drafts, "recover_in_passes", harmful)
    evidence, _ = case.recover(cross_fits=True)
    assert evidence.parts and not evidence.kept and evidence.final == evidence.removed


def rows(data: Dataset) -> set[bytes]:
    """The samples of the input."""
    return {feed["x"].tobytes() for feed in data.feeds()}

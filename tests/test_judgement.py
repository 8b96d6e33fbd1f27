"""The judgement on a result: what counts as ruined, and that the first line says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from leanonnx.commands.compress.judging import evidence_text
from leanonnx.evaluation.baseline import NO_DECISIONS, count_decisions, sum_samples
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.judgement import DOUBT, Judgement, judge, share_by_chance, upper_bound
from leanonnx.evaluation.tally import Deviation
from leanonnx.numeric.arrays import Array
from tests.helpers import CALIBRATION, CNN, build, called, saved
from tests.test_deviation import added

RNG = np.random.default_rng(0)


def fidelity(tmp_path: Path, a: Array, b: Array) -> Fidelity:
    """The deviation of a model that puts out ``b`` where the original puts out ``a``."""
    return added(tmp_path, a.astype(np.float32), (b - a).astype(np.float32), 1)


def scores(classes: Array, count: int, height: float = 5.0) -> Array:
    """Scores of which the one of the class is the largest."""
    return np.asarray(height * np.eye(count)[classes] + RNG.normal(0, 0.1, (classes.size, count)))


def test_bounds_are_those_of_the_binomial_distribution() -> None:
    for n, k in ((5, 0), (40, 7), (100, 99)):
        bound = upper_bound(k / n, n)
        assert binom.cdf(k, n, bound) == pytest.approx(DOUBT)
        assert share_by_chance(k / n, n, 0.1) == pytest.approx(binom.sf(k - 1, n, 0.1))
    assert upper_bound(1.0, 9) == 1.0
    assert share_by_chance(0.0, 9, 0.1) == 1.0


def test_chance_is_the_agreement_of_independent_decisions() -> None:
    wanted = np.array([0] * 9 + [1])
    constant, opposite = np.zeros(10, int), 1 - wanted
    assert getattr(count_decisions(wanted, constant), "chance", 0) == pytest.approx(0.9)
    assert getattr(count_decisions(wanted, opposite), "chance", 0) == pytest.approx(0.5)  # one of two
    counts = NO_DECISIONS
    for k in range(10):
        counts = counts.plus(count_decisions(wanted[k], constant[k]) or NO_DECISIONS) or NO_DECISIONS
    assert counts == count_decisions(wanted, constant)


def test_the_error_of_the_mean_output() -> None:
    values = RNG.normal(3, 1, (4000, 5))
    sums = sum_samples(values[:100], 100)
    for k in range(100, 4000):
        sums = sums.plus(sum_samples(values[k : k + 1], 1))
    assert sums.relative_error(float(np.sum(values**2))) == pytest.approx(np.sqrt(1 / 10), rel=0.02)
    assert sum_samples(values[:1], 1).relative_error(1.0) is None
    other = sums.plus(sum_samples(np.ones((1, 6)), 1))
    assert other.relative_error(1.0) is None
    assert other.plus(sums).relative_error(1.0) is None


@pytest.mark.parametrize(
    ("share", "kind"), [(1.0, "sound"), (0.7, "sound"), (0.3, "half"), (0.1, "chance"), (0.0, "chance")]
)
def test_decisions(share: float, kind: str, tmp_path: Path) -> None:
    classes = np.arange(100) % 10
    others = np.where(np.arange(100) < 100 * share, classes, (classes + 1 + np.arange(100) // 10 % 9) % 10)
    judgement = judge(fidelity(tmp_path, scores(classes, 10), scores(others, 10)))
    assert judgement is not None and judgement.kind == kind
    assert judgement.agreement == pytest.approx(share) and judgement.is_ruined == (kind != "sound")
    assert judgement.chance == pytest.approx(0.1, abs=0.02)


def test_five_samples_prove_little(tmp_path: Path) -> None:
    classes = np.arange(5)
    for agreeing, kind in ((0, "chance"), (2, "mean"), (3, "sound")):
        others = np.where(np.arange(5) < agreeing, classes, (classes + 1) % 5)
        judgement = judge(fidelity(tmp_path, scores(classes, 5), scores(others, 5)))
        assert judgement is not None and judgement.kind == kind


def test_a_constant_answer_is_chance_however_frequent(tmp_path: Path) -> None:
    classes = (np.arange(100) % 5 == 0).astype(int)
    judgement = judge(fidelity(tmp_path, scores(classes, 2), scores(np.zeros(100, int), 2)))
    assert judgement is not None and (judgement.kind, judgement.agreement) == ("chance", 0.8)


def test_decisions_that_are_not_clear_are_not_judged(tmp_path: Path) -> None:
    """Each sample has two best classes, nearly equal: a small change of the output changes the decision."""
    classes = np.arange(100) % 10
    a, b = (scores(classes, 10) + (4.9 + shift) * np.eye(10)[(classes + 1) % 10] for shift in (-0.5, 0.7))
    judgement = judge(fidelity(tmp_path, a, b))
    assert judgement is not None and judgement.agreement is not None and judgement.agreement < 0.2
    assert judgement.kind == "sound"


@pytest.mark.parametrize(("share", "kind"), [(0.8, "sound"), (0.95, "mean"), (3.0, "mean")])
def test_an_output_without_decisions_is_held_against_its_mean(share: float, kind: str, tmp_path: Path) -> None:
    a = RNG.normal(1, 1, (60, 4, 9))
    b = a + share * RNG.normal(0, 1, a.shape)
    judgement = judge(fidelity(tmp_path, a, b))
    assert judgement is not None and (judgement.kind, judgement.agreement) == (kind, None)
    assert judgement.lost == pytest.approx(share, rel=0.1)


def test_an_output_that_hardly_varies_is_not_ruined_by_a_small_error(tmp_path: Path) -> None:
    a = 10 + RNG.normal(0, 0.1, (20, 4, 9))
    judgement = judge(fidelity(tmp_path, a, a + RNG.normal(0, 0.5, a.shape)))
    assert judgement is not None and judgement.lost > 1 and judgement.kind == "sound"


def test_nothing_is_said_about_outputs_that_do_not_vary(tmp_path: Path) -> None:
    assert judge(fidelity(tmp_path, np.ones((5, 4, 9)), np.zeros((5, 4, 9)))) is None


def test_not_finite(tmp_path: Path) -> None:
    broken = Deviation("y", np.inf, broken=3)
    judgement = judge(Fidelity(samples=5, outputs=(Deviation("x", 0.1), broken)))
    assert judgement is not None and judgement.kind == "not finite"
    assert "is not finite where the original's is" in evidence_text(judgement, "5 samples", several=False)


def test_words() -> None:
    judgement = Judgement(
        kind="chance", output="y", samples=40, relative_l2=0.97, mean_l2=0.9, agreement=0.1, chance=0.12
    )
    text = evidence_text(judgement, "40 held-out samples", several=True).replace("\N{NO-BREAK SPACE}", " ")
    assert text == (
        "output 'y' decides as the original does in 10.0 % of the cases on 40 held-out samples, no better than by "
        "chance (12.0 %)"
    )
    assert "less than half" in evidence_text(replace(judgement, kind="half"), "", several=False)
    text = evidence_text(replace(judgement, kind="mean"), "40 samples", several=False)
    assert text == "the relative error of its output is 0.97 on 40 samples, that of the original's mean output 0.90"


# The first line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(build(CNN), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=CALIBRATION)
    return tmp_path


def printed(*words: object, cwd: Path) -> Any:
    """The JSON object that a command prints."""
    done = called(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RUINING = ("compress", "m.onnx", "o.onnx", "--keep", 0.05, "--align", 1, "--best-effort", "--method", "random")


def test_a_ruined_result_is_the_first_line(folder: Path) -> None:
    options = (*RUINING, "--calib", "x.npz", "--recover", "none")
    done = called(*options, cwd=folder)
    assert done.returncode == 0, done.stderr
    first = " ".join(done.stdout.split())
    assert first.startswith("The result is ruined. ") and "WARNING: the result is ruined: " in first
    for remedy in ("give at least 128 samples (there were 24)", "--recover auto", "keep more than --keep 0.05"):
        assert remedy in first
    assert "or train it with leanonnx finetune" in first and first.count("the result is ruined") == 1
    row = printed(*options, cwd=folder)
    assert row["headline"] == row["warnings"][0] and row["headline"].startswith("the result is ruined: ")
    assert row["judgement"]["kind"] in {"half", "mean", "chance"} and row["judgement"]["on"] == "held-out samples"


def test_recovery_without_data_is_judged_on_random_inputs(folder: Path) -> None:
    row = printed(*RUINING, "--recover", "auto", cwd=folder)
    assert row["judgement"]["on"] == "random inputs" and row["judgement"]["samples"] == 16
    assert "on 16 random inputs" in row["headline"] and "128 real inputs with --calib" in row["headline"]


def test_a_sound_result_has_no_headline(folder: Path) -> None:
    row = printed("compress", "m.onnx", "o.onnx", "--keep", 0.9, "--align", 1, "--calib", "x.npz", cwd=folder)
    assert row["headline"] is None and row["judgement"]["kind"] == "sound"
    row = printed("compress", "m.onnx", "o.onnx", "--keep", 0.9, "--align", 1, cwd=folder)
    assert row["headline"] is None and row["judgement"] is None


def test_ruined_points_are_the_first_line_of_a_sweep(folder: Path) -> None:
    options = ("--keep", "0.9,0.05", "--align", 1, "--best-effort", "--method", "random", "--recover", "none")
    done = called("sweep", "m.onnx", *options, "--calib", "x.npz", "--no-measure", "--out", "s", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert text.startswith("2 of 2 points reached; no knee WARNING: 1 of 2 points is ruined: ")
    assert "--keep 0.05: the result is ruined: " in text

"""The stages of a compression: their driver, the policy for changes, and the file that is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import leanonnx
from leanonnx.commands.compress import timing as timings
from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.cautions import Caution, Gravity, texts_by_gravity
from leanonnx.commands.compress.pipeline import load_dag, stages
from leanonnx.commands.compress.pruning import BudgetRemoval
from leanonnx.commands.compress.stage import Stage, optional, run_stages
from leanonnx.errors import ProofFailed
from leanonnx.graph.storage import digest
from leanonnx.recovery.acceptance import first_improvement, is_improvement
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.statistics.propagation import PropagatedMoments
from leanonnx.system.clock import Clock, ignore_progress
from tests.calibrated import net
from tests.helpers import Options, called, called_json, saved
from tests.made_up_times import comparison

MODEL = net(
    "(float[N,3,8,8] x) => (float[N,6] y)",
    "float[16,3,3,3] a, float[16] b, float[12,16,3,3] c, float[12] d, float[192,6] e, float[6] f",
    """h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m) k = Flatten (s) y = Gemm (k, e, f)""",
)


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    """The original as a candidate."""
    dag = load_dag(saved(MODEL, tmp_path / "m.onnx"))
    job = CompressJob(
        dag=dag,
        options=Options(),
        rules=DEFAULT_RULES,
        folder=tmp_path,
        name="o.onnx",
        clock=Clock(ignore_progress),
        known=PropagatedMoments(dag),
    )
    whole = Selector(dag, SelectionRequest(budget=job.options.budget)).select()
    return Candidate(job, dag.model.path, BudgetRemoval(dag, whole))


def noting(word: str) -> Stage:
    """A stage that leaves a word in the warnings."""
    return lambda candidate: replace(candidate, warnings=(*candidate.warnings, Caution("advice", word)))


def refusing(_: Candidate) -> ProofFailed:
    return ProofFailed("no")


def warnings_after(candidate: Candidate, *tried: Stage) -> tuple[str, ...]:
    result = run_stages(tried, candidate)
    assert isinstance(result, Candidate)
    return tuple(each.text for each in result.warnings)


def test_stages_run_in_order(candidate: Candidate) -> None:
    assert warnings_after(candidate, noting("a"), noting("b"), noting("c")) == ("a", "b", "c")
    assert run_stages((), candidate) is candidate


def test_a_refusal_ends_the_run(candidate: Candidate) -> None:
    def unreachable(_: Candidate) -> Candidate:
        raise AssertionError

    result = run_stages((noting("a"), refusing, unreachable), candidate)
    assert isinstance(result, ProofFailed)
    assert str(result) == "no"


def test_the_gravest_warning_comes_first(tmp_path: Path) -> None:
    given = [Caution(gravity, f"{gravity} {k}") for k in (1, 2) for gravity in reversed(get_args(Gravity))]
    assert texts_by_gravity(given) == tuple(f"{gravity} {k}" for gravity in get_args(Gravity) for k in (1, 2))
    source = saved(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    result = leanonnx.compress(source, calib=tmp_path / "x.npz", keep=0.5, align=1, minutes=1e-6, measure=False)
    starts = [text.split(":")[0] for text in result.warnings]
    assert starts[:1] == ["recovery was left out"]
    assert any(start.startswith("only ") for start in starts[1:])


def test_an_optional_change_that_is_refused_leaves_the_candidate(candidate: Candidate) -> None:
    for change in (optional(noting("a"), noting("b"), refusing, warning="w"), optional(refusing, warning="w")):
        assert warnings_after(candidate, noting("before"), change, noting("after")) == ("before", "w", "after")


def test_an_optional_change_that_passes_its_checks_is_kept(candidate: Candidate) -> None:
    assert warnings_after(candidate, optional(noting("a"), noting("b"), warning="w")) == ("a", "b")


def test_an_optional_stage_without_a_change_is_not_checked(candidate: Candidate) -> None:
    assert warnings_after(candidate, optional(lambda same: same, refusing, warning="w")) == ()


@pytest.mark.parametrize("exact", [False, True])
def test_only_the_first_stages_depend_on_exact(exact: bool) -> None:
    names = [getattr(stage, "__name__", "") for stage in stages(Options(exact=exact))]
    first = ["choose_lossless"] if exact else ["remove_branches", "choose_channels"]
    rest = ["prune_channels", "stage", "prove_equal", "recover_weights", "judge_result", "confirm_size", "prove_twice"]
    assert names == [*first, *rest, "time_candidate"]


@pytest.mark.parametrize(
    ("before", "after", "at_most", "better"),
    [
        (1.0, 0.9, 1.0, True),
        (1.0, 1.0, 1.0, False),
        (1.0, 0.75, 0.75, False),
        (1.0, 0.7, 0.75, True),
        (1.0, 5.0, None, True),
        (math.inf, 1.0, 0.75, True),
        (1.0, math.inf, None, False),
        (0.0, 0.0, None, True),
    ],
)
def test_improvements(before: float, after: float, at_most: float | None, better: bool) -> None:
    assert is_improvement(before, after, at_most) is better


@pytest.mark.parametrize(
    ("distances", "accepted", "compared"),
    [
        ({"a": 0.5}, 0, [["now", "a"]]),
        ({"a": 0.8, "b": 2.0}, 1, [["now", "a"], ["b"]]),
        ({"a": 0.8, "b": math.inf}, None, [["now", "a"], ["b"]]),
        ({}, None, []),
    ],
)
def test_the_first_improvement_is_taken(
    distances: dict[str, float], accepted: int | None, compared: list[list[str]]
) -> None:
    """The next change is made only if those before it were declined, and the current model is compared once."""
    calls: list[list[str]] = []

    def compare(models: Sequence[str]) -> list[float]:
        calls.append(list(models))
        return [{"now": 1.0, **distances}[model] for model in models]

    def changes() -> Iterator[tuple[str, float | None]]:
        for name in distances:
            yield name, 0.75 if name == "a" else None

    result, evidence = first_improvement("now", changes(), compare, float)
    assert (result, calls) == (accepted, compared)
    assert evidence == [{"now": 1.0, **distances}[name] for names in compared for name in names]


# What is timed.


class Stopwatch:
    """Stands for ``measured``: draft files take one fraction of the original's time, recovered ones others in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, draft: float, *recovered: float) -> None:
        self.draft, self.recovered = draft, list(recovered)
        self.files: list[tuple[str, bytes, float]] = []
        monkeypatch.setattr(timings, "compare_in_subprocess", self.measured)
        monkeypatch.setattr(timings, "profile_in_subprocess", lambda *_: ((),))

    def measured(
        self, before: Path, after: Path, feed: object, setting: object, seconds: float, seed: int
    ) -> TimingComparison:
        self.files.append((after.parent.name, digest(after), seconds))
        return comparison(self.recovered.pop(0) if after.parent.name == "recovered" else self.draft)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., tuple[object, ...]]:
    """A compression with data."""
    saved(MODEL, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((200, 3, 3, 3)).repeat(3, 2).repeat(3, 3)[:, :, :8, :8]
    np.savez(tmp_path / "x.npz", x=coarse.astype(np.float32))
    files = tmp_path / "m.onnx", tmp_path / "out.onnx"
    return lambda *more: ("compress", *files, "--align", 1, "--keep", 0.5, "--calib", tmp_path / "x.npz", *more)


def test_the_recovered_file_is_timed(
    command: Callable[..., tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, 0.5, 0.8)
    row = called_json(*command(), measure=True)
    assert row["recovery"]["kept"]
    assert [place for place, _, _ in watch.files][1:] == ["recovered"]
    assert watch.files[-1][1] == digest(tmp_path / "out.onnx") != watch.files[0][1]
    assert row["latency"]["speedup"] == 1.25


def test_a_file_that_recovery_left_is_timed_once(
    command: Callable[..., tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, 0.5)
    row = called_json(*command("--recover", "none"), measure=True)
    assert [file for _, file, _ in watch.files] == [digest(tmp_path / "out.onnx")]
    assert row["latency"]["speedup"] == 2.0


@pytest.mark.parametrize(("again", "code"), [(1.2, 1), (0.9, 0)])
def test_a_recovered_file_that_is_slower_than_its_draft_is_timed_longer(
    command: Callable[..., tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: float, code: int
) -> None:
    watch = Stopwatch(monkeypatch, 0.5, 1.2, again)
    done = called(*command(), measure=True)
    assert done.returncode == code, done.stderr
    assert ("not faster than the original: slower" in done.stderr) == bool(code)
    assert (tmp_path / "out.onnx").exists() == (not code)
    seconds = [seconds for place, _, seconds in watch.files if place == "recovered"]
    assert seconds == [timings.SECONDS, timings.LONG_TIMING_SECONDS]


def test_a_recovered_file_may_be_faster_than_its_drafts(
    command: Callable[..., tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Stopwatch(monkeypatch, 1.2, 0.8)
    assert called_json(*command(), measure=True)["warnings"] == []


def test_a_latency_budget_broken_by_recovery_is_reported(
    command: Callable[..., tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, 0.48, 0.6, 0.55)
    args = [*command()]
    where = args.index("--keep")
    args[where : where + 2] = ["--latency", 0.5]
    row = called_json(*args, measure=True)
    assert any("the recovered model takes 0.5500 of the latency, 0.5 was" in text for text in row["warnings"])
    assert watch.recovered == []

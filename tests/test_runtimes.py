"""The second oracle: the written model in further runtimes, and an error of any of them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator

import leanonnx
from benchmarks.oracle import added, running_totals
from leanonnx.commands.compress.pipeline import CompressResult, compress_file
from leanonnx.errors import ProofFailed
from leanonnx.graph.formats import Source, load_proto
from leanonnx.graph.model import load
from leanonnx.inputs.random import INPUT_KINDS
from leanonnx.proof import runtimes
from leanonnx.proof.proof import ERROR_BOUNDS, PASSED
from leanonnx.proof.runtimes import ALIKE, NOT_RUN, OPTIMISED, REFERENCE, UNOPTIMISED, compare_runtimes
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.selection.metrics import Budget
from tests.graphs import models
from tests.helpers import ANY, CNN, Options, build, called, saved
from tests.test_proof_random import BODIES, noisy, noisy_within_a_subgraph
from tests.test_properties import folder_with

WIDTH = 8
"""Channels of the first layer of ``CNN``, and of a model that nothing was removed from."""
WRONG = 1.5
"""Factor by which a broken runtime multiplies its outputs."""
GRAPHS = settings(max_examples=settings.default.max_examples // 5)


def twice(proto: onnx.ModelProto, folder: Path, **options: Any) -> CompressResult:
    source = saved(proto, folder / "in.onnx")
    return compress_file(source, folder / "out.onnx", Options(Budget("kernels", 0.5), prove_twice=True, **options))


def statuses(result: CompressResult) -> dict[str, str]:
    return {row.runtimes[1]: row.status for row in result.runtimes}


def is_pruned(source: Source) -> bool:
    widths = {tensor.name: tensor.dims[0] for tensor in load_proto(source).graph.initializer}
    return widths["w1"] < WIDTH


def broken_evaluator(breaks: Callable[[Source], bool]) -> type:
    """A reference evaluator that computes wrong outputs for some models."""

    class Broken(ReferenceEvaluator):
        def __init__(self, proto: onnx.ModelProto) -> None:
            super().__init__(proto)
            self.factor = WRONG if breaks(proto) else 1.0

        def run(self, *args: Any, **kwargs: Any) -> list[np.ndarray]:
            return [value * np.float32(self.factor) for value in super().run(*args, **kwargs)]

    return Broken


def broken_run(breaks: Callable[[Source], bool]) -> Callable[..., list[list[np.ndarray]]]:
    """onnxruntime with a fault in its optimisations of some models."""

    def run_with_fault(source: Source, feeds: Sequence[Feed], optimise: bool, **others: Any) -> list[list[np.ndarray]]:
        factor = np.float32(WRONG if optimise and breaks(source) else 1.0)
        return [[value * factor for value in row] for row in run(source, feeds, optimise, **others)]

    return run_with_fault


def test_all_runtimes_agree(tmp_path: Path) -> None:
    result = twice(build(CNN), tmp_path)
    assert statuses(result) == {OPTIMISED: PASSED, REFERENCE: PASSED}
    assert all(row.runtimes[0] == UNOPTIMISED and row.output == "y" and row.inputs for row in result.runtimes)


def test_nothing_more_runs_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "reference_evaluator", None)
    source = saved(build(CNN), tmp_path / "in.onnx")
    assert compress_file(source, tmp_path / "out.onnx", Options(Budget("kernels", 0.5))).runtimes == ()


@pytest.mark.parametrize(
    ("place", "broken", "name"),
    [("reference_evaluator", broken_evaluator, REFERENCE), ("run", broken_run, OPTIMISED)],
    ids=["reference", "optimised"],
)
def test_error_of_a_runtime(
    place: str, broken: Callable[..., Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the result alone it is a refusal; on the original as well, a warning."""
    monkeypatch.setattr(runtimes, place, broken(is_pruned))
    with pytest.raises(ProofFailed, match=f"output 'y' .* differs between {UNOPTIMISED} and {name} ") as error:
        twice(build(CNN), tmp_path)
    assert "agree on the original; nothing written" in str(error.value)
    assert not (tmp_path / "out.onnx").exists()
    monkeypatch.setattr(runtimes, place, broken(lambda source: True))
    result = twice(build(CNN), tmp_path)
    assert statuses(result)[name] == ALIKE
    assert next(row for row in result.runtimes if row.status == ALIKE).original_error == pytest.approx(WRONG - 1)
    remark = f"output 'y' differs by 0.5 between {UNOPTIMISED} and {name}, and by 0.5 on the original"
    assert any(text.startswith(remark) for text in result.warnings)


class Failing(broken_evaluator(is_pruned)):  # type: ignore[misc]
    """A reference evaluator that computes wrong outputs for pruned models, and cannot run others."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__(proto)
        if not is_pruned(proto):
            raise NotImplementedError("Conv")


def test_a_runtime_that_fails_on_the_original_is_no_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "reference_evaluator", Failing)
    with pytest.raises(
        ProofFailed, match=f"differs between {UNOPTIMISED} and {REFERENCE} .*, which cannot be compared on"
    ):
        twice(build(CNN), tmp_path)


def test_integers_that_cannot_be_compared_on_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "reference_evaluator", Failing)
    text = CNN.replace(": 17]", ": 21]").replace(
        "{\n", "{\n q = QuantizeLinear (x, qs, qz) xd = DequantizeLinear (q, qs, qz)\n", 1
    )
    text = text.replace("Conv <pads = [1, 1, 1, 1]> (x, w1", "Conv <pads = [1, 1, 1, 1]> (xd, w1", 1)
    text = text.replace(">\n{", ", float[1] qs = {0.05}, uint8[1] qz = {128}>\n{", 1)
    result = twice(build(text), tmp_path)
    assert next(row for row in result.runtimes if row.status == ALIKE).original_error is None
    assert any("which cannot be compared on the original: the model computes in integers" in w for w in result.warnings)


def test_no_inputs_and_random_numbers_of_a_subgraph(tmp_path: Path) -> None:
    plain, drawing = saved(build(CNN), tmp_path / "plain.onnx"), saved(noisy_within_a_subgraph(), tmp_path / "in.onnx")
    with pytest.raises(RunFailed, match="there are no inputs"):
        compare_runtimes(load(plain), plain, [], 1)
    rows = compare_runtimes(load(drawing), drawing, [], 1)
    assert {(row.status, "random numbers that cannot be made equal" in row.reason) for row in rows} == {(NOT_RUN, True)}


def test_large_models_are_not_run_by_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "MAX_REFERENCE_MACS", 10)
    row = twice(build(CNN), tmp_path).runtimes[1]
    assert row.status == NOT_RUN
    assert row.reason.endswith("multiply-adds, and it is run up to 10")


def test_operator_that_the_reference_lacks(tmp_path: Path) -> None:
    text = CNN.replace('["" : 17]', '["" : 17, "com.microsoft" : 1]').replace("Relu (c1)", "com.microsoft.Gelu (c1)")
    result = twice(build(text), tmp_path)
    assert statuses(result) == {OPTIMISED: PASSED, REFERENCE: NOT_RUN}
    assert result.runtimes[1].reason.startswith("it lacks an operator: ")
    assert "Gelu" in result.runtimes[1].reason


def test_operator_with_which_the_reference_fails(tmp_path: Path) -> None:
    """It cannot crop with a Pad."""
    text = CNN.replace("<float[8, 3", "<int64[8] edges = {0, 0, -1, 0, 0, 0, 0, -1}, float[8, 3", 1)
    text = text.replace("(r1, w2)", "(cut, w2)").replace("c2 = Conv", "cut = Pad (r1, edges) c2 = Conv")
    result = twice(build(text), tmp_path)
    assert statuses(result) == {OPTIMISED: PASSED, REFERENCE: NOT_RUN}
    assert result.runtimes[1].reason.startswith("it cannot run this model: ")


def test_inputs_on_which_the_original_fails_are_left_out(tmp_path: Path) -> None:
    """A class number that is too large for the table."""
    text = CNN.replace("8] x)", "8] x, int64[1] i)").replace("<float[8, 3", "<float[3, 5] t, float[8, 3", 1)
    text = text.replace("y = Gemm", "z = Gemm").replace("w3, b3)", "w3, b3) g = Gather (t, i) y = Add (z, g)")
    result = twice(build(text), tmp_path)
    assert statuses(result) == {OPTIMISED: PASSED, REFERENCE: PASSED}
    assert result.runtimes[0].inputs == result.proof.inputs == len(INPUT_KINDS)


CHAOTIC = """
<ir_version: 8, opset_import: ["" : 17]>
chaotic (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 4, 8, 8] z)
<float[8, 3, 3, 3] w1, float[4, 8, 3, 3] w2, float large = {1e8}>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (c)
    y = Conv <pads = [1, 1, 1, 1]> (r, w2)
    m = Mul (y, large)
    z = Sin (m)
}
"""


class Nudging(ReferenceEvaluator):
    """A reference evaluator that reads every input one unit in the last place away."""

    def run(self, names: Any, feed: Feed, **kwargs: Any) -> list[np.ndarray]:
        return super().run(names, {name: np.nextafter(value, np.float32(9)) for name, value in feed.items()}, **kwargs)


@pytest.mark.parametrize(("factor", "status"), [("1e8", ALIKE), ("1e3", PASSED)])
def test_output_that_depends_on_the_last_bit_does_not_fail(
    factor: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes where a nudge of the inputs changes it as much."""
    monkeypatch.setattr(runtimes, "reference_evaluator", Nudging)
    row = twice(build(CHAOTIC.replace("1e8", factor)), tmp_path).runtimes[1]
    assert (row.runtimes[1], row.status, row.output) == (REFERENCE, status, "z")
    assert row.max_relative_error > ERROR_BOUNDS["float32"]


@pytest.mark.parametrize("name", ["like", "dropout"])
def test_random_numbers_are_the_same_in_all_runtimes(name: str, tmp_path: Path) -> None:
    assert set(statuses(twice(noisy(BODIES[name]), tmp_path)).values()) == {PASSED}


@GRAPHS
@given(models())
def test_random_graphs(proto: onnx.ModelProto) -> None:
    with folder_with(proto) as (source, target):
        options = Options(Budget("kernels", 0.5), best_effort=True, prove_twice=True)
        result = compress_file(source, target, options)
        assert {OPTIMISED, REFERENCE} == set(statuses(result))


def test_report_and_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(build(CNN), tmp_path / "in.onnx")
    words = ("compress", "in.onnx", "out.onnx", "--keep", 0.5, "--align", 1, "--prove-twice", "--report", "page.html")
    printed = " ".join(called(*words, cwd=tmp_path).stdout.split())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"Its outputs are the same in {UNOPTIMISED}, {OPTIMISED}, " in page
    assert f"Proof twice, passed: {REFERENCE} and {UNOPTIMISED} differ by" in printed
    monkeypatch.setattr(runtimes, "reference_evaluator", broken_evaluator(is_pruned))
    done = called(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "leave out --prove-twice" in " ".join(done.stderr.split())


def test_python_keyword(tmp_path: Path) -> None:
    small = leanonnx.compress(build(CNN), keep=0.5, prove_twice=True, **ANY)
    assert [row.status for row in small.report.runtimes or ()] == [PASSED, PASSED]


def test_differences_over_graphs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.onnx", "b.onnx"):
        saved(build(CNN), tmp_path / name)
    asked = Namespace(folder=tmp_path, keep_sets=2, workers=1)
    first, both = running_totals({}, asked)
    assert [(row["graphs"], row["keep_sets"], row["compared"]) for row in (first, both)] == [(1, 2, 2), (2, 4, 4)]
    assert both["differences"] == []
    monkeypatch.setattr(runtimes, "reference_evaluator", broken_evaluator(is_pruned))
    (resumed,) = running_totals(first, asked)
    assert (resumed["graphs"], [each["graph"] for each in resumed["differences"]]) == (2, ["b.onnx", "b.onnx"])


def test_totals_of_graphs_are_added() -> None:
    rows = [{"graphs": 1, "reasons": {"one": n}, "differences": [n]} for n in (1, 2)]
    rows[1]["refused"] = 1
    assert added(*rows) == {"graphs": 2, "reasons": {"one": 3}, "differences": [1, 2], "refused": 1}

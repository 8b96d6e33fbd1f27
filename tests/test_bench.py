"""``leanonnx bench``: what it measures, prints and refuses.  Nothing depends on how fast the machine is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from leanonnx.commands.bench import benchmark
from leanonnx.commands.bench.benchmark import (
    BenchCase,
    BenchRequest,
    check_fits,
    check_same_inputs,
    resolve_input_sizes,
    with_batch,
)
from leanonnx.commands.bench.tables import TIMING_LINES
from leanonnx.errors import ModelError, OptionError
from leanonnx.graph.model import load
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import Timing, TimingComparison
from tests.helpers import CNN, SHORT, build, called, cli, refused, saved
from tests.test_timing import NO_GPU

FREE = CNN.replace("float[1, 3, 8, 8] x", "float[N, 3, 8, 8] x").replace("float[1, 5] y", "float[N, 5] y")
NARROWER = {"12, 8, 3, 3": "12, 4, 3, 3", "[8, 3, 3, 3]": "[4, 3, 3, 3]", "float[8] b1": "float[4] b1"}
SMALLER = reduce(lambda text, pair: text.replace(*pair), NARROWER.items(), FREE)
QUICK = ("--seconds", SHORT, "--threads", 1)
TIMES = ("p10_ms", "median_ms", "p90_ms", "session_ms", "first_ms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    saved(build(FREE), made / "free.onnx")
    saved(build(SMALLER), made / "smaller.onnx")
    saved(build(CNN), made / "fixed.onnx")
    saved(build(FREE.replace(" x", " image").replace("(x,", "(image,")), made / "renamed.onnx")
    saved(build(FREE.replace("float[N, 3, 8, 8]", "float[N, 3, 9, 9]")), made / "larger.onnx")
    return made


def measured(folder: Path, *args: object) -> dict[str, Any]:
    done = called("bench", *args, *QUICK, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert isinstance(row, dict)
    return row


def check_side(side: dict[str, Any]) -> None:
    assert side.keys() == {*TIMES, "runs", "memory_bytes", "convolutions"}
    assert all(side[name] > 0 for name in TIMES)
    assert side["convolutions"]["fast"] + side["convolutions"]["plain"] == 2


RESULT = {"batch", "threads", "inputs", "before", "after", "warnings"}
RATIO = {"speedup", "interval", "noise", "rounds", "lots", "verdict"}


def test_two_models(folder: Path) -> None:
    """As a user runs it, in a process of its own."""
    done = cli("bench", "free.onnx", "smaller.onnx", *QUICK, "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    row = json.loads(done.stdout)
    assert row.keys() == {"schema", "before", "after", "provider", "fixed", "results"}
    assert (row["schema"], row["before"], row["after"]) == (1, "free.onnx", "smaller.onnx")
    (result,) = row["results"]
    assert result.keys() == RESULT | RATIO
    check_side(result["before"])
    check_side(result["after"])
    assert result["interval"][0] <= result["speedup"] <= result["interval"][1]
    assert result["verdict"] in ("faster", "slower", "no difference shown")
    assert (result["threads"], result["batch"], result["inputs"]["x"][1]) == (1, None, 3)


def test_one_model(folder: Path) -> None:
    row = measured(folder, "free.onnx")
    (result,) = row["results"]
    assert row["after"] is None
    assert {name for name in RATIO | {"after"} if result[name] is not None} == set()
    check_side(result["before"])


def test_fixed_conditions_are_reported(folder: Path) -> None:
    fixed = measured(folder, "free.onnx")["fixed"]
    assert fixed["denormals"] == "flushed to zero"
    assert fixed["inter_op_threads"] == 1
    assert fixed["io_binding"] is False
    assert fixed["seconds"] == SHORT
    assert fixed["onnxruntime"][0].isdigit()
    assert "tf32" not in fixed


def test_batches_and_threads_are_measured_each(folder: Path) -> None:
    done = called(
        "bench",
        "free.onnx",
        "--seconds",
        SHORT,
        "--batch",
        "1,3",
        "--threads",
        "1",
        "--threads",
        "2",
        "--json",
        cwd=folder,
    )
    found = [(r["batch"], r["threads"], r["inputs"]["x"][0]) for r in json.loads(done.stdout)["results"]]
    assert found == [(1, 1, 1), (1, 2, 1), (3, 1, 3), (3, 2, 3)]


def test_sizes_can_be_given(folder: Path) -> None:
    (result,) = measured(folder, "free.onnx", "--shape", "x=2,3,8,8")["results"]
    assert result["inputs"]["x"] == [2, 3, 8, 8]
    (result,) = measured(folder, "free.onnx", "--shape", "x=2,3,8,8", "--batch", 4)["results"]
    assert result["inputs"]["x"] == [4, 3, 8, 8]


def test_table_explains_each_number(folder: Path) -> None:
    done = called("bench", "free.onnx", "smaller.onnx", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    for row in TIMING_LINES:
        assert any(line.startswith(row.label) for line in lines), row.label
        assert row.meaning in lines
    assert "times as fast (95 % interval" in done.stdout
    assert "1 thread, x 1,3,8,8" in done.stdout
    assert "denormal numbers flushed to zero" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--threads", "-1"), "--threads -1: expected a whole number of at least 0"),
        (("--threads", "two"), "--threads two"),
        (("--batch", "0"), "--batch 0: expected a whole number of at least 1"),
        (("--batch", "1,,2"), "--batch 1,,2"),
        (("--seconds", "0"), "--seconds 0"),
        (("--seconds", "nan"), "--seconds nan"),
        (("--shape", "y=1,3,8,8"), "no such graph input"),
        (("--shape", "x=1,4,8,8"), "the model declares ?,3,8,8"),
        (("--library", "none.so"), "--library none.so"),
        (("--cuda-graph",), "--provider cuda"),
        (("missing.onnx",), "missing.onnx"),
        (("renamed.onnx",), "'image' float32[?,3,8,8]"),
        (("larger.onnx",), "takes 'x' float32[?,3,9,9], but free.onnx takes 'x' float32[?,3,8,8]"),
        (("fixed.onnx", "--batch", "2"), "fixed.onnx: its input 'x' is 1,3,8,8, which 2,3,8,8 does not fit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_requests(folder: Path, args: tuple[str, ...], says: str) -> None:
    refused(folder, "bench", "free.onnx", *args, says=(says,))


def test_a_batch_that_the_model_fixes(folder: Path) -> None:
    refused(folder, "bench", "fixed.onnx", "--batch", "1,2", says=("--batch 2", "fixes the first axis", "'x'"))
    (result,) = measured(folder, "fixed.onnx", "--batch", "1")["results"]
    assert result["batch"] == 1


@pytest.mark.skipif(not NO_GPU, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there(folder: Path, provider: str) -> None:
    says = (f"--provider {provider}", "pip install 'onnxruntime-gpu[cuda,cudnn]'", "nvidia-smi")
    refused(folder, "bench", "free.onnx", "--provider", provider, says=says)


def test_a_model_that_cannot_run_at_these_sizes(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4] x, float[M, 4] y) => (float[K, 4] z) { z = Add (x, y) }
    """
    path = saved(build(text), tmp_path / "two.onnx")
    sizes = ("--shape", "x=2,4", "--shape", "y=3,4")
    refused(
        tmp_path, "bench", path, *sizes, *QUICK, says=("two.onnx: cannot be timed with inputs x=2,4, y=3,4", "--shape")
    )


def test_batch_goes_to_inputs_with_a_free_first_axis(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4] x, float[1, 4] y) => (float[N, 4] z) { z = Add (x, y) }
    """
    model = load(saved(build(text), tmp_path / "two.onnx"))
    sizes = resolve_input_sizes(model, {})
    assert with_batch(model, sizes, 5) == {"x": (5, 4), "y": (1, 4)}


def test_inputs_are_compared_by_name_type_and_size(folder: Path, tmp_path: Path) -> None:
    free, fixed, larger = (load(folder / f"{name}.onnx") for name in ("free", "fixed", "larger"))
    check_same_inputs(free, fixed)
    check_same_inputs(fixed, free)
    with pytest.raises(OptionError, match="same inputs"):
        check_same_inputs(free, larger)
    half = saved(build(FREE.replace("float[", "float16[")), tmp_path / "half.onnx")
    with pytest.raises(OptionError, match="float16"):
        check_same_inputs(free, load(half))
    check_fits(fixed, {"x": (1, 3, 8, 8)})
    with pytest.raises(OptionError, match="does not fit"):
        check_fits(fixed, {"x": (2, 3, 8, 8)})


def timing_of(median: float, p90: float) -> Timing:
    return Timing(p10=median, median=median, p90=p90, session=1, first=1, runs=1, memory=0, layouts=None)


def test_a_busy_machine_is_reported() -> None:
    calm, shaken = timing_of(1, 1.1), timing_of(1, 4.0)
    cases = {
        TimingComparison(before=calm, after=calm, speedup=1, interval=(1, 1), noise=0.01, rounds=20, lots=1): False,
        TimingComparison(before=calm, after=calm, speedup=1, interval=(1, 1), noise=0.2, rounds=20, lots=1): True,
        TimingComparison(before=calm, after=shaken, speedup=1, interval=(1, 1), noise=0.01, rounds=20, lots=1): True,
        calm: False,
        shaken: True,
        replace(calm, waited=0.01): False,
        replace(calm, waited=0.25): True,
    }
    for outcome, busy in cases.items():
        assert bool(BenchCase(batch=None, inputs={}, setting=Setting(), outcome=outcome).warnings) == busy
        assert bool(outcome.busy_signs) == busy
    both = replace(next(iter(cases)), noise=0.2, after=replace(shaken, waited=0.25))
    assert both.busy_signs == (
        "waiting for a processor took 25% of the time, the times of one model differ by 20%, one run in ten took 4.0 "
        "times the median or more"
    )


def test_failures_name_the_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> TimingComparison:
        raise benchmark.RunFailed("no memory")

    monkeypatch.setattr(benchmark, "compare_in_subprocess", failing)
    with pytest.raises(ModelError, match=r"free\.onnx and .*smaller\.onnx: .*no memory"):
        benchmark.run_bench(folder / "free.onnx", folder / "smaller.onnx", BenchRequest())

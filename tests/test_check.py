"""``leanonnx check``: files, data, limits and how latency is judged; pairs of models are in ``test_check_pairs``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from onnxruntime import InferenceSession

from leanonnx.commands.bench.benchmark import BenchCase
from leanonnx.commands.check.check import random_data
from leanonnx.commands.check.denormals import denormal_weights
from leanonnx.commands.check.gates import MACS, SIZE, SPEEDUP, GateLimit, read_limit
from leanonnx.commands.check.verdicts import FAILED, PASSED, speedup_verdict
from leanonnx.errors import OptionError
from leanonnx.graph.model import load
from leanonnx.proof.proof import random_inputs
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import Timing, TimingComparison
from tests.helpers import Done, build, called, cli, refused, saved, saved_external
from tests.test_check_pairs import ALWAYS, FREE, IMAGE, QUICK, checked, denormal, gate, status, unknown
from tests.test_timing import NO_GPU


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(build(FREE), tmp_path / "base.onnx")
    saved(build(FREE), tmp_path / "new.onnx")
    return tmp_path


def test_as_a_user_runs_it(folder: Path) -> None:
    done = cli("check", "base.onnx", "new.onnx", "--max-deviation", "0", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "PASSED: 8 of 8 gates passed" in done.stdout
    saved(build(FREE, 1), folder / "new.onnx")
    done = cli("check", "base.onnx", "new.onnx", "--max-deviation", "0", cwd=folder)
    assert done.returncode == 1
    assert done.stderr == "leanonnx: 1 of 8 gates failed: max-deviation\n"
    assert "FAILED: 1 of 8 gates failed: max-deviation" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not an ONNX model"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: saved_external(build(FREE), path).with_name("weights.bin").unlink(), "is missing"),
    ],
    ids=["truncated", "empty", "LFS pointer", "no external data"],
)
def test_a_broken_file_fails_as_new_and_is_refused_as_base(
    folder: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(folder / "new.onnx")
    row = checked(folder, code=1)
    assert row["failed"] == ["valid"]
    assert says in gate(row, "valid")["detail"]
    assert status(row, "skipped") == ALWAYS - {"valid"}
    refused(folder, "check", "new.onnx", "base.onnx", says=(says,))


@pytest.mark.parametrize("pair", [("base.onnx", "gone.onnx"), ("gone.onnx", "new.onnx"), ("base.onnx", ".")])
def test_a_file_that_is_not_there_is_refused(folder: Path, pair: tuple[str, str]) -> None:
    refused(folder, "check", *pair, says=(": no",))


def test_a_base_that_does_not_run_is_refused(folder: Path) -> None:
    proto = build(FREE)
    unknown(proto)
    saved(proto, folder / "base.onnx")
    refused(folder, "check", "base.onnx", "base.onnx", says=("base.onnx", "not a registered function/op"))


def test_external_data_count_as_bytes(folder: Path) -> None:
    saved_external(build(FREE), folder / "new.onnx")
    row = checked(folder, "--max-bytes", "1.5x")
    size = sum((folder / name).stat().st_size for name in ("new.onnx", "weights.bin"))
    assert gate(row, "max-bytes")["measured"] == size
    assert gate(row, "max-bytes")["base"] == (folder / "base.onnx").stat().st_size


# data


def samples(count: int, size: int = 8) -> Any:
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def test_real_inputs(folder: Path) -> None:
    """Every sample is compared, and labels give the accuracy of both."""
    np.savez(folder / "data.npz", x=samples(50), labels=np.zeros(50, np.int64))
    row = checked(folder, "--data", "data.npz", "--min-agreement", 1, "--max-macs", "1x")
    assert [(each["inputs"], each["samples"]) for each in row["deviation"]] == [("data.npz", 50)]
    assert any("top-1 accuracy" in note for note in row["notes"])
    assert "50 samples" in gate(row, "min-agreement")["detail"]


def test_agreement_is_that_of_the_samples(folder: Path) -> None:
    saved(build(FREE, 9), folder / "new.onnx")
    np.savez(folder / "data.npz", x=samples(40))
    row = checked(folder, "--data", "data.npz", "--min-agreement", 1, code=1)
    runs = [outputs_of(folder / name, samples(40)).argmax(1) for name in ("base.onnx", "new.onnx")]
    assert gate(row, "min-agreement")["measured"] == float(np.mean(runs[0] == runs[1])) < 1


def outputs_of(path: Path, x: Any) -> Any:
    return InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_deviation_is_that_of_the_samples(folder: Path) -> None:
    saved(build(FREE, 1), folder / "new.onnx")
    np.savez(folder / "data.npz", x=samples(40))
    row = checked(folder, "--data", "data.npz", "--max-deviation", 100)
    a, b = (outputs_of(folder / name, samples(40)) for name in ("base.onnx", "new.onnx"))
    classes = np.linalg.norm(a - b, axis=0) / np.linalg.norm(a, axis=0)
    found = row["deviation"][0]["outputs"]["y"]
    assert found["relative_l2"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
    worst = {"axis": 1, "index": int(classes.argmax()), "relative_l2": pytest.approx(classes.max(), rel=1e-5)}
    low, high = found["worst_channel"].pop("interval")
    assert found["worst_channel"] == worst and low < classes.max() < high
    assert gate(row, "max-deviation")["measured"] >= found["worst_channel"]["relative_l2"] > found["relative_l2"]


def test_sizes_come_from_the_data(tmp_path: Path) -> None:
    """Multiply-adds and latency are those at the size of the samples; --shape takes precedence."""
    for name in ("base.onnx", "new.onnx"):
        saved(build(IMAGE), tmp_path / name)
    np.savez(tmp_path / "data.npz", x=samples(3, 24))
    row = checked(tmp_path, "--data", "data.npz", "--max-macs", "1x", "--max-latency-ms", 1e6, *QUICK)
    assert gate(row, "max-macs")["measured"] == 3 * 3 * 9 * 24 * 24
    assert row["latency"]["results"][0]["inputs"] == {"x": [1, 3, 24, 24]}
    row = checked(tmp_path, "--data", "data.npz", "--max-macs", "1x", "--shape", "x=1,3,16,16")
    assert gate(row, "max-macs")["measured"] == 3 * 3 * 9 * 16 * 16


def test_new_fails_on_a_sample_that_base_takes(tmp_path: Path) -> None:
    """An axis declared free is not: a constant of NEW fixes its size."""
    saved(build(IMAGE), tmp_path / "base.onnx")
    fixed = (
        IMAGE.replace("{ y = Conv", "<int64[4] s = {-1, 3, 8, 8}> { r = Reshape (x, s) y = Conv")
        .replace("(x, w)", "(r, w)")
        .replace("<float[3, 3, 3, 3] w>\n<", "<float[3, 3, 3, 3] w, ")
    )
    saved(build(fixed), tmp_path / "new.onnx")
    np.savez(tmp_path / "small.npz", x=samples(3))
    row = checked(tmp_path, "--data", "small.npz", code=1)
    assert row["failed"] == ["runs"]
    assert "x=2,3,24,16" in gate(row, "runs")["detail"]
    np.savez(tmp_path / "data.npz", x=samples(3, 9))
    row = checked(tmp_path, "--data", "data.npz", code=1)
    assert row["failed"] == ["runs"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": samples(3), "mask": samples(3)}, "no array for input 'x'"),
        ({"x": samples(3, 9)}, "has the shape [3, 3, 9, 9]"),
        ({"x": np.full((3, 3, 8, 8), np.nan, np.float32)}, "NaN"),
    ],
    ids=["wrong names", "wrong shape", "NaN"],
)
def test_data_that_do_not_fit_are_refused(folder: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(folder / "data.npz", **arrays)
    refused(folder, "check", "base.onnx", "new.onnx", "--data", "data.npz", says=("data.npz", says))


def test_random_inputs_are_those_of_the_proof(folder: Path) -> None:
    model = load(folder / "base.onnx")
    sizes = {"x": (1, 3, 8, 8)}
    found = [next(data.feeds(1))["x"] for data in random_data(model, sizes, 5).values()]
    np.testing.assert_array_equal(found, [feed["x"] for feed in random_inputs(model, sizes, 5)])
    every = [feed["x"].tobytes() for data in random_data(model, sizes, 0).values() for feed in data.feeds(1)]
    assert len(set(every)) == len(every) == 12


def test_the_seed_is_reported_and_used(folder: Path) -> None:
    saved(build(FREE, 1), folder / "new.onnx")
    rows = [checked(folder, "--max-deviation", 100, "--seed", seed) for seed in (0, 1, 1)]
    assert [row["seed"] for row in rows] == [0, 1, 1]
    found = [gate(row, "max-deviation")["measured"] for row in rows]
    assert found[0] != found[1] == found[2]


def test_a_model_without_inputs(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g () => (float[2] y) <float[2] w> { y = Relu (w) }'
    for name, seed in (("base.onnx", 0), ("new.onnx", 1)):
        saved(build(text, seed), tmp_path / name)
    assert checked(tmp_path, "--max-deviation", 0, code=1)["failed"] == ["max-deviation"]


def test_denormal_weights_are_counted_by_type(tmp_path: Path) -> None:
    """Those of float16 are normal numbers in float32, in which they are computed with."""
    proto = build(FREE)
    denormal(proto)
    proto.graph.initializer.append(numpy_helper.from_array(np.full(3, 1e-310), "d"))
    proto.graph.initializer.append(numpy_helper.from_array(np.full(3, 1e-40), "e"))
    proto.graph.initializer.append(numpy_helper.from_array(np.full(3, 6e-8, np.float16), "h"))
    path = saved(proto, tmp_path / "m.onnx")
    assert denormal_weights(load(path)) == {"w2": 7, "d": 3}
    code = f"""
import numpy as np
from pathlib import Path
from leanonnx.commands.check.denormals import denormal_weights
from leanonnx.graph.model import load
from leanonnx.runtime.providers import Setting, open_timed_session
open_timed_session(Path({str(path)!r}), Setting(threads=1))
assert not np.full(1, 1e-40, np.float32).any()
assert denormal_weights(load(Path({str(path)!r}))) == {{"w2": 7, "d": 3}}
"""
    # A process whose first session flushes denormal numbers takes them for zero.
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# gates and their limits


def test_gates_from_a_file(folder: Path) -> None:
    (folder / "gates.toml").write_text('max-bytes = "1kB"\nmax-deviation = 0.5\nmin-agreement = 1\n')
    row = checked(folder, "--gates", "gates.toml", "--max-bytes", "1MB", "--max-deviation", 0.5, "--min-agreement", 1)
    assert (gate(row, "max-bytes")["limit"], gate(row, "max-deviation")["limit"]) == (1e6, 0.5)
    done = called("check", "base.onnx", "new.onnx", "--gates", "gates.toml", cwd=folder)
    assert done.returncode == 1
    assert "max-bytes" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max-byte = 5", ("'max-byte'", "did you mean max-bytes?")),
        ("max_deviation = 0.1", ("'max_deviation'", "did you mean max-deviation?")),
        ("frobnicate = 5", ("'frobnicate'", "the gates are max-deviation")),
        ("valid = 1", ("no gate 'valid'",)),
        ("max-bytes = true", ("max-bytes", "expected bytes")),
        ("max-bytes = [1]", ("max-bytes", "expected bytes")),
        ("[max-bytes]\nlimit = 1", ("max-bytes", "expected bytes")),
        ("max-bytes = ", ("gates.toml: not TOML",)),
        (f"max-bytes = 0x{'F' * 5_000}", ("gates.toml: not TOML", "64 bits")),
    ],
)
def test_wrong_gates_in_a_file(folder: Path, text: str, says: tuple[str, ...]) -> None:
    (folder / "gates.toml").write_text(text)
    refused(folder, "check", "base.onnx", "new.onnx", "--gates", "gates.toml", says=("gates.toml", *says))


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        (SIZE, "5MB", GateLimit(5e6)),
        (SIZE, "5 mb", GateLimit(5e6)),
        (SIZE, "4MiB", GateLimit(4 * 2**20)),
        (SIZE, "1.5k", GateLimit(1500)),
        (SIZE, 123456, GateLimit(123456)),
        (SIZE, "0.5x", GateLimit(0.5, share=True)),
        (MACS, "2.5M", GateLimit(2.5e6)),
        (MACS, "1e9", GateLimit(1e9)),
        (MACS, "1x", GateLimit(1, share=True)),
        (SPEEDUP, "1.5", GateLimit(1.5)),
    ],
)
def test_limits(name: str, text: object, limit: GateLimit) -> None:
    assert read_limit(name, text, "here") == limit


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--max-bytes", "5TB", "5MB"),
        ("--max-bytes", "-1", "bytes such as"),
        ("--max-bytes", "x", "bytes such as"),
        ("--max-params", "5MB", "2.5M"),
        ("--max-deviation", "nan", "0.01"),
        ("--max-deviation", "inf", "0.01"),
        ("--max-deviation", "0.5x", "0.01"),
        ("--min-agreement", "1.5", "0 to 1"),
        ("--min-agreement", "0", "0 to 1"),
        ("--min-speedup", "0", "1.5"),
        ("--min-speedup", "fast", "1.5"),
        ("--max-latency-ms", "0.5x", "min-speedup"),
        ("--seconds", "0", "more than 0"),
        ("--threads", "-1", "at least 0"),
        ("--shape", "z=1,3,8,8", "no such graph input"),
        ("--gates", "gone.toml", "cannot be read"),
        ("--data", "gone.npz", "no such file"),
        ("--mean", "0.5", "--data"),
        ("--junit", "base.onnx", "the output is the input"),
        ("--junit", "nowhere/r.xml", "does not exist"),
    ],
)
def test_wrong_options(folder: Path, option: str, value: str, says: str) -> None:
    refused(folder, "check", "base.onnx", "new.onnx", option, value, says=(says,))


def test_agreement_of_outputs_without_decisions_is_refused(tmp_path: Path) -> None:
    saved(build(IMAGE), tmp_path / "base.onnx")
    says = ("--min-agreement", "holds classes", "--max-deviation")
    refused(tmp_path, "check", "base.onnx", "base.onnx", "--min-agreement", 1, says=says)


def test_limits_of_another_kind_are_no_limits() -> None:
    with pytest.raises(OptionError, match="here None"):
        read_limit(SIZE, None, "here")


# latency


def case(low: float, high: float, noise: float = 0.0) -> BenchCase:
    timing = Timing(p10=1, median=1, p90=1, session=1, first=1, runs=1, memory=0, layouts=None)
    return BenchCase(
        batch=None,
        inputs={},
        setting=Setting(threads=1),
        outcome=TimingComparison(
            before=timing, after=timing, speedup=(low + high) / 2, interval=(low, high), noise=noise, rounds=20, lots=1
        ),
    )


@pytest.mark.parametrize(
    ("limit", "found", "expected", "says"),
    [
        (1.5, case(1.6, 1.8), PASSED, "95 %"),
        (1.5, case(1.5, 1.8, noise=0.9), PASSED, "95 %"),
        (1.5, case(1.4, 1.6), PASSED, "not slower than the limit"),
        (1.5, case(1.4, 1.49), PASSED, "not slower than the limit"),
        (1.5, case(1.4, 1.48), FAILED, "beyond noise"),
        (1.5, case(1.4, 1.48, noise=0.1), PASSED, "not slower than the limit"),
        (1.5, case(1.2, 1.3, noise=0.1), FAILED, "beyond noise"),
        (1.0, case(0.99, 1.01), PASSED, "not slower than the limit"),
        (1.0, case(0.5, 0.6), FAILED, "beyond noise"),
        (1.0, case(0.9, 1.2), FAILED, "too noisy"),
        (1.0, case(0.95, 1.05, noise=0.5), FAILED, "too noisy"),
        (1.0, case(0.0, float("inf")), FAILED, "too noisy"),
    ],
)
def test_a_speedup_is_judged_by_its_interval(limit: float, found: BenchCase, expected: str, says: str) -> None:
    verdict = speedup_verdict(GateLimit(limit), [found])
    assert verdict.status == expected
    assert says in verdict.detail


def test_each_case_has_to_pass() -> None:
    assert speedup_verdict(GateLimit(1.5), [case(2, 2.1), case(1.1, 1.2), case(1.6, 1.7)]).measured == pytest.approx(
        1.15
    )
    assert speedup_verdict(GateLimit(1.5), [case(2, 2.1), case(1.6, 1.7)]).measured == pytest.approx(1.65)
    assert speedup_verdict(GateLimit(1), [case(0.9, 1.3), case(1.05, 1.06)]).status == FAILED


def test_a_noisy_comparison_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = iter([case(0.5, 2.0), case(0.5, 2.0), case(1.0, 1.1)])
    monkeypatch.setattr("leanonnx.commands.bench.benchmark.run_bench", lambda *_: (next(cases),))
    assert checked(folder, "--min-speedup", 1)["passed"]
    monkeypatch.setattr("leanonnx.commands.bench.benchmark.run_bench", lambda *_: (case(0.5, 2.0),))
    assert checked(folder, "--min-speedup", 1, code=1)["failed"] == ["min-speedup"]


@pytest.mark.skipif(not NO_GPU, reason="this machine has an NVIDIA driver")
def test_a_provider_that_is_not_there(folder: Path) -> None:
    asked = ("check", "base.onnx", "new.onnx", "--provider", "cuda", "--min-speedup", 1, "--max-latency-ms", 9)
    refused(folder, *asked, says=("--provider cuda", "--skip-missing-provider"))
    done: Done = called(*asked, "--skip-missing-provider", "--json", cwd=folder)
    assert done.returncode == 0
    row = json.loads(done.stdout)
    assert status(row, "skipped") == {"min-speedup", "max-latency-ms"}
    assert "--provider cuda" in gate(row, "min-speedup")["detail"]


def test_an_unused_provider_is_reported(folder: Path) -> None:
    assert checked(folder, "--provider", "cuda")["notes"] == [
        "nothing was run on cuda: no gate on latency was asked for"
    ]

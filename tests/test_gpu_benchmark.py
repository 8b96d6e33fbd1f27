"""``benchmarks.gpu`` with the CPU in the place of a GPU, and its parts on made-up answers of nvidia-smi."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import common
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import experiment, machine, page
from benchmarks.gpu.machine import abi_fault, is_locked, parse_log, pin_text
from benchmarks.gpu.outputs import fallen_back, fault, observed, relative_errors
from leanonnx.runtime.providers import Setting
from tests.helpers import CNN, build, saved

FREE = CNN.replace("float[1, 3, 8, 8]", "float[N, 3, 8, 8]").replace("float[1, 5]", "float[N, 5]")
LOG = "1980, 2619, 310.5, 61, 97, 0x0000000000000004\n1700, 2619, 350.0, 64, 99, 0x0000000000000001\n, [N/A], x\n"
STEADY = "1980, 2619, [N/A], 61, 97, 0x0000000000000001\n" * 3
TIMED = {
    "provider": "cuda",
    "network": "unet",
    "kind": "float32",
    "keep": 0.5,
    "batch": 8,
    "tf32": True,
    "cuda_graph": False,
    "before_ms": 4.0,
    "after_ms": 2.0,
    "images_per_second": [2000.0, 4000.0],
    "speedup": 2.0,
    "interval": [1.9, 2.1],
    "verdict": "faster",
    "gpu": {"throttled_by": ["power cap"]},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small network in the place of those that are measured, and a folder for results and pages."""
    monkeypatch.setattr(experiment, "build", lambda name, folded: build(CNN))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "DOCS", tmp_path)
    return tmp_path


def test_every_step_runs_with_the_cpu_in_the_place_of_a_gpu(small: Path) -> None:
    words = ["--provider", "cpu", "--networks", "unet", "--keep", "0.5", "--batch", "2", "--seconds", "0.01"]
    assert command.main([*words, "--no-widths"]) == 0
    rows = common.load("gpu_trial")["rows"]
    assert [row["kind"] for row in rows] == ["float32", "int8"]
    assert [row.get("error") for row in rows] == [None, None]
    assert all(row["before_ms"] > 0 and max(row["output_errors"]) < 0.1 for row in rows)
    assert page.sections({"rows": rows})[0] == "## cpu, float32"
    assert not (small / "gpu.md").exists()


def test_a_node_that_fell_back_and_wrong_outputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(build(FREE), tmp_path / "m.onnx")
    row = observed(path, Setting("cpu", 1), 2)
    assert row["fallen_back"] == {} and row["error"] == 0 and fault(row, "float32") == ""
    places = {"provider": "CPUExecutionProvider", "op_name": "Resize"}
    events: list[dict[str, Any]] = [{"cat": "Node", "args": places}] * 2 + [{"cat": "Session", "args": places}, {}]
    assert fallen_back(events, "cuda") == {"Resize on CPUExecutionProvider": 2}
    assert fallen_back(events, "cpu") == {}
    assert fault({**row, "fallen_back": fallen_back(events, "cuda")}, "float32").startswith("nodes fell back: 2 Resize")
    assert fault({**row, "error": 0.01}, "float32") == "outputs differ from the CPU's by 0.01"
    assert fault({**row, "error": 0.01}, "float16") == ""
    assert fault({**row, "error": float("nan")}, "int8") != ""
    assert fault({"refused": "no driver"}, "int8") == "no driver"
    calls = iter([row, {"refused": "no driver"}])
    monkeypatch.setattr(experiment, "observed_in_subprocess", lambda *_: next(calls))
    refused = experiment.compared(path, path, "float32", 2, Setting("cpu", 1), 0.01)
    assert refused == {"error": "after: no driver"}


def test_errors_are_relative_and_infinite_where_numbers_are_not() -> None:
    ones, nothing = np.ones(4, np.float32), np.zeros(4, np.float32)
    assert relative_errors([ones, nothing], [ones * 1.5, nothing]) == [0.5, 0.0]
    assert relative_errors([ones], [np.full(4, np.nan, np.float32)]) == [float("inf")]


def test_the_log_holds_ranges_and_reasons() -> None:
    log = parse_log(LOG)
    assert log.is_throttled and log.row["throttled_by"] == ["power cap"]
    assert log.row["clocks.sm"] == [1700, 1840, 1980] and log.row["power.draw"] == [310.5, 330.25, 350.0]
    assert not is_locked(log.row) and is_locked(parse_log(STEADY).row)
    assert "power.draw" not in parse_log(STEADY).row and not parse_log(STEADY).is_throttled
    assert parse_log("").row == {"throttled_by": []} and not is_locked({})


def test_libraries_are_looked_at_first_and_the_pin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert abi_fault("cpu") == ""
    assert "has no library of the tensorrt provider" in abi_fault("tensorrt", tmp_path)
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    assert "libonnxruntime_providers_cuda.so does not load" in abi_fault("cuda", tmp_path)
    assert pin_text("libnvinfer.so.10: cannot open shared object file") == "; install tensorrt >=10,<11"
    assert pin_text("libnothing.so.3: cannot open") == "" == pin_text("invalid ELF header")

    def never(*_: object) -> None:
        raise AssertionError("timed before the libraries were looked at")

    monkeypatch.setattr(experiment, "run", never)
    monkeypatch.setattr(experiment, "abi_fault", lambda provider: "it does not load")
    assert command.main(["--provider", "cuda"]) == command.USER_ERROR


def test_the_page_tells_throttling_and_failures(small: Path) -> None:
    failed = {**TIMED, "provider": "tensorrt", "kind": "int8", "error": "nodes fell back: 1 Resize on CPU"}
    facts = {"environment": common.environment(), "device": {"gpus": ["H200, 550"], "libraries": {"tensorrt": "10.3"}}}
    page.write_page({**facts, "rows": [{**TIMED, "clock_locked": False}, failed]})
    text = (small / "gpu.md").read_text(encoding="utf-8")
    assert "| unet | 0.5 | 8 | on | off | 4.000 | 2.000 | 4000 | 2.00 (1.90–2.10) ! |" in text
    assert "## tensorrt, int8" in text and "| fails |" in text and "was not locked" in text


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_networks_are_written_with_a_free_batch(small: Path, kind: str) -> None:
    proto = onnx.load(experiment.write_network("unet", kind, small / "n.onnx"))
    kinds: Sequence[int] = [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)]
    assert {onnx.helper.tensor_dtype_to_np_dtype(each).name for each in kinds} == {kind}
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert machine.device().keys() == {"gpus", "libraries"}

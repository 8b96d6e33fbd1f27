"""Measure the networks: each element type against its own baseline, on one provider, at each batch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.common import COMMAND, ROOT, Finished, Row, compress, environment, progress, run, save
from benchmarks.gpu.machine import abi_fault, device, is_locked, logged
from benchmarks.gpu.outputs import fault, observed_in_subprocess, random_inputs
from benchmarks.networks import build
from leanonnx.errors import LeanOnnxError
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
CALIBRATION_SAMPLES = 32
GRAPHS, PRECISIONS = (True, False), (True, False)
"""With and without a CUDA graph; with and without TF32."""
SETTINGS: dict[Provider, dict[str, list[Setting]]] = {
    "cpu": {kind: [Setting("cpu", 1)] for kind in (FLOAT32, INT8)},
    "cuda": {
        FLOAT32: [Setting("cuda", 1, tf32=tf32, cuda_graph=graph) for tf32, graph in product(PRECISIONS, GRAPHS)],
        FLOAT16: [Setting("cuda", 1, cuda_graph=graph) for graph in GRAPHS],
    },
    "tensorrt": {
        kind: [Setting("tensorrt", 1, cuda_graph=graph) for graph in GRAPHS] for kind in (FLOAT32, FLOAT16, INT8)
    },
}
"""By provider and element type; TF32 changes nothing where float16 is multiplied, and CUDA has no integer kernels."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The measurements: networks, fractions of their kernels, sizes of the first axis, and seconds of a measurement."""

    providers: Sequence[Provider]
    networks: Sequence[str]
    keeps: Sequence[float]
    batches: Sequence[int]
    seconds: float
    widths: bool


def missing(provider: Provider) -> str:
    """The reason why no model can be timed on a provider here, its libraries looked at first; empty if one can."""
    if reason := abi_fault(provider):
        return reason
    model = ROOT / "models" / "cs_unet.onnx"
    done = run([COMMAND, "bench", model, "--provider", provider, "--threads", "1", "--seconds", "0.01", "--json"])
    return done.message if done.code else ""


def write_network(name: str, kind: str, target: Path) -> Path:
    """A network with batch normalisation folded, its batch free, in a float type."""
    model = build(name, folded=True)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(convert_float_to_float16(model, keep_io_types=False) if kind == FLOAT16 else model, target)
    return target


def written_pair(name: str, kind: str, keep: float, provider: Provider, work: Path) -> tuple[Path, Path, Finished]:
    """A network before and after pruning, both in one element type, and the compression of the second."""
    before, after = work / "before.onnx", work / "after.onnx"
    write_network(name, kind, before)
    if kind != INT8:
        return before, after, compress(before, after, "--keep", str(keep), "--best-effort")
    whole, data = before.rename(work / "whole.onnx"), work / "x.npz"
    np.savez(data, **random_inputs(whole, CALIBRATION_SAMPLES))  # type: ignore[arg-type]
    integers = ("--int8", "--calib", data, "--provider", provider)
    baseline = compress(whole, before, *integers)
    if baseline.code:
        return before, after, baseline
    return before, after, compress(whole, after, "--keep", str(keep), "--best-effort", *integers)


def measure(name: str, provider: Provider, plan: Plan) -> Iterator[Row]:
    """All measurements of one network on one provider."""
    with tempfile.TemporaryDirectory() as work:
        for kind, keep in product(SETTINGS[provider], plan.keeps):
            before, after, done = written_pair(name, kind, keep, provider, Path(work))
            key = {"provider": provider, "network": name, "kind": kind, "keep": keep}
            if done.code:
                yield {**key, "error": done.message}
                continue
            key["kernels"] = done.report["kernels"]["fraction"]
            for batch, setting in product(plan.batches, SETTINGS[provider][kind]):
                row = {**key, "batch": batch, "tf32": setting.tf32, "cuda_graph": setting.cuda_graph}
                yield row | compared(before, after, kind, batch, setting, plan.seconds)


def compared(before: Path, after: Path, kind: str, batch: int, setting: Setting, seconds: float) -> Row:
    """Both networks timed in turns, once their outputs and the places of their nodes are right; or why not."""
    rows = {name: observed_in_subprocess(path, setting, batch) for name, path in (("before", before), ("after", after))}
    for name, row in rows.items():
        if reason := fault(row, kind):
            return {"error": f"{name}: {reason}"}
    try:
        with logged() as logs:
            timing = compare_in_subprocess(before, after, random_inputs(before, batch), setting, seconds)
    except (LeanOnnxError, RunFailed) as error:
        return {"error": str(error)}
    log = logs[0].row if logs else {}
    return {
        "before_ms": timing.before.median,
        "after_ms": timing.after.median,
        "images_per_second": [batch * 1e3 / each.median for each in (timing.before, timing.after)],
        "speedup": timing.speedup,
        "interval": list(timing.interval),
        "noise": timing.noise,
        "rounds": timing.rounds,
        "verdict": timing.verdict,
        "output_errors": [row["error"] for row in rows.values()],
        "gpu": log,
        "clock_locked": is_locked(log) if log else None,
    }


def measured_widths(provider: Provider) -> Row:
    """The table of widths that run fast on a provider, as ``calibrate-device`` measures it."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--provider", provider, "--out", Path(folder) / "targets.toml", "--json"]
        done = run([COMMAND, "calibrate-device", *words])
    return done.report or {"error": done.message}


def measure_all(plan: Plan) -> None:
    """All networks on all providers; saved after each."""
    rows: list[Row] = []
    widths: dict[str, Row] = {}
    facts = {"environment": environment(), "device": device(), "seconds": plan.seconds}
    for provider in plan.providers:
        if plan.widths:
            widths[provider] = measured_widths(provider)
        for name in plan.networks:
            for row in measure(name, provider, plan):
                rows.append(row)
                progress(" ".join(f"{key}={value}" for key, value in row.items()))
            save(result_name(plan.providers), {**facts, "rows": rows, "widths": widths})


def result_name(providers: Sequence[Provider]) -> str:
    """Name of the file of results: a trial on the CPU is none of a GPU."""
    return "gpu" if "cpu" not in providers else "gpu_trial"

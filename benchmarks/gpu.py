"""Latency on an NVIDIA GPU of the benchmark networks before and after compression.

    python -m benchmarks.gpu [--networks NAME …] [--keep F …] [--batch N …] [--seconds S] [--page]

Each network is measured as float32 (TF32 on and off) and as float16, with and without a CUDA graph. Results are saved
after every network; ``--page`` writes the page anew from the last ones. Without a GPU nothing is measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from shutil import which

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.common import (
    COMMAND,
    ROOT,
    Row,
    compress,
    environment,
    load,
    measured_by,
    progress,
    publish,
    run,
    save,
    table,
)
from benchmarks.networks import ARCHITECTURES, build
from leanonnx.errors import LeanOnnxError
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess
from leanonnx.runtime.timing import NO_DIFFERENCE

KEEPS = (0.5, 0.25, 0.1)
BATCHES = (1, 8, 32)
SECONDS = 2.0
SETTINGS = {
    "float32": [Setting("cuda", 1, tf32=tf32, cuda_graph=graph) for tf32, graph in product((True, False), repeat=2)],
    "float16": [Setting("cuda", 1, cuda_graph=graph) for graph in (True, False)],
}
"""By element type; TF32 changes nothing where float16 is multiplied."""
LIBRARIES = ("nvidia-", "onnxruntime", "torch", "tensorrt")
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader")
USER_ERROR = 2
MEANING = (
    "Milliseconds of one run, inputs and outputs in GPU memory (copies are not timed); *before / after* with its 95 % "
    "interval, from both models timed in turns in a fresh process. Weights are random. *=*: no difference shown. "
    "*fails*: onnxruntime cannot run it so."
)


def device() -> Row:
    """The GPU, its driver, and the libraries that serve it."""
    text = subprocess.run(QUERY, capture_output=True, text=True, check=False).stdout if which(QUERY[0]) else ""
    names = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "gpus": [line.strip() for line in text.splitlines() if line.strip()],
        "libraries": {name: names[name] for name in sorted(names) if name.startswith(LIBRARIES)},
    }


def missing() -> str:
    """Why no model can be timed on a GPU here; empty if one can."""
    model = ROOT / "models" / "cs_unet.onnx"
    done = run([COMMAND, "bench", model, "--provider", "cuda", "--threads", "1", "--seconds", "0.01", "--json"])
    return done.message if done.code else ""


def write_network(name: str, kind: str, target: Path) -> Path:
    """A network with batch normalisation folded, its batch free, in an element type."""
    model = build(name, folded=True)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(convert_float_to_float16(model, keep_io_types=False) if kind == "float16" else model, target)
    return target


def random_inputs(path: Path, batch: int) -> Feed:
    """Random values for a network's inputs."""
    rng = np.random.default_rng(0)
    found = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        kind = value.type.tensor_type
        shape = (batch, *(d.dim_value for d in kind.shape.dim[1:]))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        found[value.name] = rng.standard_normal(shape, np.float32).astype(dtype)
    return found


def measure(name: str, keeps: Sequence[float], batches: Sequence[int], seconds: float) -> Iterator[Row]:
    """All measurements of one network."""
    with tempfile.TemporaryDirectory() as work:
        for kind, keep in product(SETTINGS, keeps):
            before = write_network(name, kind, Path(work) / "before.onnx")
            after = Path(work) / "after.onnx"
            done = compress(before, after, "--keep", str(keep), "--best-effort")
            key = {"network": name, "kind": kind, "keep": keep}
            if done.code:
                yield {**key, "error": done.message}
                continue
            key["kernels"] = done.report["kernels"]["fraction"]
            for batch, setting in product(batches, SETTINGS[kind]):
                row = {**key, "batch": batch, "tf32": setting.tf32, "cuda_graph": setting.cuda_graph}
                yield row | compared(before, after, batch, setting, seconds)


def compared(before: Path, after: Path, batch: int, setting: Setting, seconds: float) -> Row:
    """Both networks timed in turns; or why not."""
    try:
        found = compare_in_subprocess(before, after, random_inputs(before, batch), setting, seconds)
    except (LeanOnnxError, RunFailed) as error:
        return {"error": str(error)}
    return {
        "before_ms": found.before.median,
        "after_ms": found.after.median,
        "speedup": found.speedup,
        "interval": list(found.interval),
        "noise": found.noise,
        "rounds": found.rounds,
        "verdict": found.verdict,
    }


def measure_all(names: Sequence[str], keeps: Sequence[float], batches: Sequence[int], seconds: float) -> None:
    """All networks; saved after each."""
    rows: list[Row] = []
    for name in names:
        for row in measure(name, keeps, batches, seconds):
            rows.append(row)
            progress(" ".join(f"{key}={value}" for key, value in row.items()))
        save("gpu", {"environment": environment(), "device": device(), "seconds": seconds, "rows": rows})


def write_page(data: Row) -> Path:
    """``docs/gpu.md`` from the results."""
    head = ["network", "keep", "batch", "TF32", "CUDA graph", "before, ms", "after, ms", "before / after"]
    sections = []
    for kind in SETTINGS:
        rows = [_line(row) for row in data["rows"] if row["kind"] == kind]
        sections += [f"## {kind}", table(head, rows)] if rows else []
    known = data["device"]
    libraries = ", ".join(f"{name} {version}" for name, version in known["libraries"].items())
    made = f"{'; '.join(known['gpus'])}. {libraries}."
    return publish("gpu", "Latency on a GPU", [MEANING, *sections, made, measured_by("gpu", data["environment"])])


def _line(row: Row) -> list[str]:
    on = {True: "on", False: "off", None: ""}
    key = [row["network"], f"{row['keep']:g}", str(row.get("batch", ""))]
    key += [on[row.get("tf32") if row["kind"] == "float32" else None], on[row.get("cuda_graph")]]
    if "error" in row:
        return [*key, "", "", "fails"]
    low, high = row["interval"]
    same = " =" * (row["verdict"] == NO_DIFFERENCE)
    return [
        *key,
        f"{row['before_ms']:.3f}",
        f"{row['after_ms']:.3f}",
        f"{row['speedup']:.2f} ({low:.2f}–{high:.2f}){same}",
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=sorted(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--keep", nargs="+", type=float, default=KEEPS, help="fractions of the kernels")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="sizes of the first axis")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        if reason := missing():
            progress(f"no GPU to measure on: {reason}")
            return USER_ERROR
        measure_all(args.networks, args.keep, args.batch, args.seconds)
    write_page(load("gpu"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

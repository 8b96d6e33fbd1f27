"""The page ``docs/gpu.md`` from the results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import Row, measured_by, publish, table
from leanonnx.runtime.timing import NO_DIFFERENCE

MEANING = (
    "Milliseconds of one run, inputs and outputs in GPU memory (copies are not timed); *before / after* with its 95 % "
    "interval, from both models timed in turns in a fresh process. Each element type is compared with the original in "
    "the same type. Weights are random. *=*: no difference shown. *!*: the GPU was slowed down meanwhile. *fails*: it "
    "was not timed, for the reason in the results: onnxruntime cannot run it, a node fell back to another provider, or "
    "the outputs differ from those of the CPU."
)
UNLOCKED = (
    "The clock of the GPU was not locked in some measurements (`nvidia-smi -lgc` locks it); the results hold its "
    "range, power, temperature and reasons of throttling for each."
)
HEAD = ["network", "keep", "batch", "TF32", "CUDA graph", "before, ms", "after, ms", "images/s after", "before / after"]
ON = {True: "on", False: "off", None: ""}


def write_page(data: Row) -> Path:
    """``docs/gpu.md`` from the results."""
    known = data["device"]
    libraries = ", ".join(f"{name} {version}" for name, version in known["libraries"].items())
    made = f"{'; '.join(known['gpus'])}. {libraries}."
    unlocked = [UNLOCKED] if any(row.get("clock_locked") is False for row in data["rows"]) else []
    made_by = measured_by("gpu", data["environment"])
    return publish("gpu", "Latency on a GPU", [MEANING, *sections(data), *unlocked, made, made_by])


def sections(data: Row) -> list[str]:
    """A table for each provider and element type."""
    pairs = dict.fromkeys((row["provider"], row["kind"]) for row in data["rows"])
    texts = []
    for provider, kind in pairs:
        rows = [line(row) for row in data["rows"] if (row["provider"], row["kind"]) == (provider, kind)]
        texts += [f"## {provider}, {kind}", table(HEAD, rows)]
    return texts


def line(row: Row) -> list[str]:
    """The cells of a measurement."""
    key = [row["network"], f"{row['keep']:g}", str(row.get("batch", ""))]
    key += [ON[row.get("tf32") if row["kind"] == "float32" else None], ON[row.get("cuda_graph")]]
    if "error" in row:
        return [*key, "", "", "", "fails"]
    low, high = row["interval"]
    marks = " =" * (row["verdict"] == NO_DIFFERENCE) + " !" * bool(row["gpu"].get("throttled_by"))
    return [
        *key,
        f"{row['before_ms']:.3f}",
        f"{row['after_ms']:.3f}",
        f"{row['images_per_second'][1]:.0f}",
        f"{row['speedup']:.2f} ({low:.2f}–{high:.2f}){marks}",
    ]

"""Run a model on a provider once: where its nodes ran, and how far its outputs are from those of the CPU.

    python -m benchmarks.gpu.outputs REQUEST.json

Runs in a process of its own, so that a provider that crashes takes nothing with it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.common import ROOT, Row, run
from leanonnx.errors import LeanOnnxError
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.providers import (
    PROVIDER_NAMES,
    Provider,
    Setting,
    open_timed_session,
    prepare_provider,
    session_options,
)
from leanonnx.runtime.sessions import Feed, RunFailed, run_session

MAX_ERRORS = {"float32": 5e-3, "float16": 5e-2, "int8": 1e-1}
"""Largest relative L2 error of an output on the provider, by element type; TF32 has 10 bits of mantissa."""


def random_inputs(path: Path, batch: int) -> Feed:
    """Random values for a network's inputs."""
    rng = np.random.default_rng(0)
    feed = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        kind = value.type.tensor_type
        shape = (batch, *(size.dim_value for size in kind.shape.dim[1:]))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feed[value.name] = rng.standard_normal(shape, np.float32).astype(dtype)
    return feed


def fallen_back(events: Iterable[Mapping[str, Any]], provider: Provider) -> dict[str, int]:
    """Nodes of a profile that ran elsewhere than asked for: their number by operator and provider."""
    wanted = PROVIDER_NAMES[provider]
    others: Counter[str] = Counter()
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") == "Node" and facts.get("provider") and facts["provider"] != wanted:
            others[f"{facts.get('op_name', '?')} on {facts['provider']}"] += 1
    return dict(sorted(others.items()))


def relative_errors(wanted: Iterable[Array], computed: Iterable[Array]) -> list[float]:
    """‖difference‖ / ‖wanted‖ of each output; infinite where numbers are not finite in one of both."""
    errors = []
    for left, right in zip(wanted, computed, strict=True):
        first, second = (np.asarray(side, np.float64) for side in (left, right))
        scale = float(np.linalg.norm(first))
        error = float(np.linalg.norm(first - second)) / scale if scale else float(np.linalg.norm(second))
        errors.append(error if np.isfinite(error) else float("inf"))
    return errors


def observed(path: Path, setting: Setting, batch: int) -> Row:
    """Nodes that fell back, and the largest error of an output against the CPU."""
    feed = random_inputs(path, batch)
    plain = replace(setting, cuda_graph=False)
    prepare_provider(plain)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(plain)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_timed_session(path, plain, options)
        computed = run_session(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    wanted = run_session(open_timed_session(path, Setting("cpu", 1)), feed)
    errors = relative_errors(wanted, computed)
    return {"fallen_back": fallen_back(events, setting.provider), "error": max(errors, default=0.0)}


def observed_in_subprocess(path: Path, setting: Setting, batch: int) -> Row:
    """The same in a process of its own; its ``refused`` tells why, if it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        facts = {"provider": setting.provider, "threads": setting.threads, "tf32": setting.tf32}
        request.write_text(json.dumps({"path": str(path.resolve()), "batch": batch, "setting": facts}))
        done = run([sys.executable, "-m", "benchmarks.gpu.outputs", request], ROOT)
    return done.report or {"refused": done.message or f"exit code {done.code}"}


def fault(row: Row, kind: str) -> str:
    """The reason why a model must not be timed, from what was observed; empty if it may."""
    if "refused" in row:
        return str(row["refused"])
    if row["fallen_back"]:
        return "nodes fell back: " + ", ".join(f"{count} {name}" for name, count in row["fallen_back"].items())
    if not row["error"] <= MAX_ERRORS[kind]:
        return f"outputs differ from the CPU's by {row['error']:.2g}"
    return ""


def main() -> int:
    """Answer a request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        row = observed(Path(request["path"]), Setting(**request["setting"]), request["batch"])
    except (LeanOnnxError, RunFailed) as error:
        row = {"refused": str(error)}
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())

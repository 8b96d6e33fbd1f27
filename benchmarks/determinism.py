"""Compare the bytes that ``compress`` writes without measuring, over processes, hash seeds, threads and vector units.

    python -m benchmarks.determinism [MODEL INPUTS.npz …] [--jobs NAME …]

Every job (a set of options) is run once plainly and then once for each variation of its environment; the model, the
plan and the JSON report have to be the same, byte for byte, the seconds of the stages in the report left out.  Other
vector units are simulated: OpenBLAS and numpy are told to use the kernels of other processors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import onnx

from benchmarks.common import ROOT, Row, environment, progress, save
from benchmarks.opsets import network

NAME = "determinism"
SAMPLES, OPSET = 24, 17
"""Inputs of the small network and its operator set."""
JOBS: dict[str, tuple[str, ...]] = {
    "keep": ("--keep", "0.5"),
    "macs": ("--macs", "0.5"),
    "calib": ("--keep", "0.5", "--calib", "x.npz"),
    "int8": ("--keep", "0.75", "--int8", "--calib", "x.npz"),
}
THREADS = "SESSION_THREADS"
"""Variable of a variation: threads of onnxruntime's sessions."""
LAUNCHER = """
import os
from leanonnx.cli.main import main
from leanonnx.runtime.sessions import thread_limit
with thread_limit(int(os.environ["SESSION_THREADS"])):
    main()
"""
"""The command line with a limit of threads, which it has no option for."""
PLAIN = {THREADS: "1"}
CALM = {
    "again": PLAIN,
    **{f"hash seed {seed}": {"PYTHONHASHSEED": seed} for seed in ("1", "12345")},
    **{
        f"{count} threads": {THREADS: count, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
        for count in ("1", "2", "4")
    },
}
"""Variations of one machine."""
WITHOUT_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
NUMPY_FEATURES = {"no AVX512": WITHOUT_AVX512, "no AVX2": f"{WITHOUT_AVX512} AVX2 FMA3"}
OTHER_UNITS = {
    **{f"OpenBLAS for {core}": {"OPENBLAS_CORETYPE": core} for core in ("Haswell", "SkylakeX", "Zen", "Nehalem")},
    **{f"numpy with {name}": {"NPY_DISABLE_CPU_FEATURES": text} for name, text in NUMPY_FEATURES.items()},
}
"""Variations that stand for machines with other vector units."""
VARIATIONS = {**CALM, **OTHER_UNITS}
VOLATILE = ("seconds", "timings")
"""Keys of the report that hold what a clock measured."""


def digests(folder: Path, words: Sequence[str], extra: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of model, plan and report of one run in a fresh process; the message where it fails.

    The files of the run are left in the folder.
    """
    files = {"model": folder / "o.onnx", "plan": folder / "p.json", "report": folder / "r.json"}
    for path in files.values():
        path.unlink(missing_ok=True)
    plan = ("--plan-out", files["plan"].name)
    command = [sys.executable, "-c", LAUNCHER, "compress", "m.onnx", "o.onnx", *words, *plan, "--no-measure", "--json"]
    paths = os.pathsep.join(each for each in (str(ROOT), os.environ.get("PYTHONPATH", "")) if each)
    variables = {**os.environ, "PYTHONPATH": paths, **PLAIN, **extra}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2]}
    files["report"].write_text(json.dumps(without_times(json.loads(done.stdout)), indent=1))
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def without_times(value: object) -> object:
    """A JSON value without what a clock measured."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in VOLATILE}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Names of the files that are not the same in two runs."""
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def largest_difference(first: Path, second: Path) -> float | None:
    """Largest difference of two models' constants, relative to the largest number; None if their shapes differ."""
    sides = [
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (first, second)
    ]
    shapes = [{name: array.shape for name, array in side.items()} for side in sides]
    if shapes[0] != shapes[1]:
        return None
    pairs = [(sides[0][name].astype(np.float64), sides[1][name].astype(np.float64)) for name in sides[0]]
    return max((float(np.abs(a - b).max() / (np.abs(a).max() or 1.0)) for a, b in pairs if a.size), default=0.0)


def compared(folder: Path, words: Sequence[str], variations: Mapping[str, Mapping[str, str]]) -> Row:
    """Differences from the plain run, by variation: names of files, and how far constants are apart."""
    plain = digests(folder, words, PLAIN)
    if "error" in plain:
        return {"error": plain["error"]}
    kept = folder / "plain.onnx"
    kept.write_bytes((folder / "o.onnx").read_bytes())
    different: Row = {}
    for name, extra in variations.items():
        names = differing(plain, digests(folder, words, extra))
        if names:
            apart = largest_difference(kept, folder / "o.onnx") if "error" not in names else None
            different[name] = {"files": names, "largest_relative_difference": apart}
    return {"sha256": plain, "variations": len(variations), "different": different}


def write_inputs(folder: Path, model: Path | None = None, inputs: Path | None = None) -> None:
    """Put a model and its inputs into a folder: those given, or a small network with normal inputs."""
    if model is not None and inputs is not None:
        (folder / "m.onnx").write_bytes(model.read_bytes())
        (folder / "x.npz").write_bytes(inputs.read_bytes())
        return
    proto = network(OPSET)
    onnx.save(proto, folder / "m.onnx")
    shape = [size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim]
    samples = np.random.default_rng(0).standard_normal((SAMPLES, *shape[1:]))
    np.savez(folder / "x.npz", x=samples.astype(np.float32))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare all; exit code 1 if anything differs on one machine."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="models, each with its inputs; else a small network")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    asked = parser.parse_args(arguments)
    pairs: list[tuple[Path | None, Path | None]] = [*zip(asked.files[::2], asked.files[1::2], strict=True)]
    rows: list[Row] = []
    for (model, inputs), job in product(pairs or [(None, None)], asked.jobs):
        with tempfile.TemporaryDirectory() as name:
            write_inputs(Path(name), model, inputs)
            row = compared(Path(name), JOBS[job], VARIATIONS)
        rows.append({"model": model.stem if model else "small network", "job": job, **row})
        progress(json.dumps(rows[-1]))
        variables = {each: dict(extra) for each, extra in VARIATIONS.items()}
        save(NAME, {"environment": environment(), "variations": variables, "rows": rows})
    return int(any("error" in row or set(row["different"]) & set(CALM) for row in rows))


if __name__ == "__main__":
    sys.exit(main())

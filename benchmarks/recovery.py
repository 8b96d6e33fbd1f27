"""What inputs without labels give back: every way to choose channels with the same recovery, and onnxsim beside them.

    python -m benchmarks.recovery [ZOO] [--peer PYTHON] [--only NAME ...] [--page]

ZOO is a folder with models, data and their scorer (``zoo.py``). PYTHON: an interpreter that has onnxsim, whose
calibrated and plain pruning are taken at the sparsity that leaves nearest to the same multiply-adds. Nothing here is
timed. Cells that are in the results already are not measured again; ``--page`` only writes the page anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.common import COMMAND, RESULTS, ROOT, Row, compress, environment, load, progress, run, save
from benchmarks.recovery_page import write_page

RATIOS = (0.75, 0.5, 0.25, 0.1)
TWO = (0.75, 0.5)
MAIN = (
    "cifar_resnet_4b",
    "sri_resnet_a",
    "marabou_cifar_large",
    "oval_cifar_wide",
    "carvana_unet_simp",
    "super_resolution_10",
    "squeezenet_fp16",
)
MORE = (
    "yolox_nano",
    "nanodet_m_b",
    "ppocr_mobile_v2_cls",
    "deeplab_v3_mnv2",
    "msd_cs",
    "gtcrn_simple",
    "basic_pitch",
    "seis_unet",
    "seis_eqt",
)
METHODS: dict[str, tuple[str, ...]] = {
    "default": (),
    "l2": ("--method", "l2"),
    "l1": ("--method", "l1"),
    "random": ("--method", "random"),
}
FEW = ("default", "l2")
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1000)
COUNTED = ("cifar_resnet_4b", "sri_resnet_a")
COUNTED_RATIOS = (0.5, 0.25)
SAMPLES = 1000
SPARSITIES = (0.03, 0.07, 0.13, 0.2, 0.27, 0.33, 0.4, 0.47, 0.53, 0.6, 0.67, 0.73, 0.8, 0.87)
PEER = """
import json, sys
import numpy as np, onnx, onnxsim
source, calib, folder, *sparsities = sys.argv[1:]
ready, _ = onnxsim.simplify(onnx.load(source))
data = np.load(calib)
inputs = {value.name: len(value.type.tensor_type.shape.dim) for value in ready.graph.input}
count = min(len(data[name]) for name in inputs)
samples = []
for k in np.linspace(0, count - 1, min(count, 64)).astype(int):
    whole = {name: data[name].ndim > rank for name, rank in inputs.items()}
    samples.append({name: data[name][k] if whole[name] else data[name][k : k + 1] for name in inputs})
for sparsity in map(float, sparsities):
    for kind in ("plain", "calibrated"):
        copy = onnx.ModelProto()
        copy.CopyFrom(ready)
        try:
            if kind == "plain":
                pruned = onnxsim.apply_structured_pruning(copy, sparsity=sparsity)
            else:
                pruned = onnxsim.apply_structured_wanda_pruning(copy, samples, sparsity=sparsity)
            onnx.save(pruned, f"{folder}/{kind}_{sparsity}.onnx")
        except Exception as error:
            print(kind, sparsity, error, file=sys.stderr)
print(json.dumps({"version": onnxsim.__version__}))
"""


def cells() -> list[Row]:
    """Every cell: network, fraction of multiply-adds, method, samples."""
    grid = [(name, ratio, "default") for name in MAIN for ratio in RATIOS]
    grid += [(name, ratio, method) for name in MORE for ratio in TWO for method in FEW]
    grid += [(name, ratio, method) for method in METHODS for name in MAIN for ratio in RATIOS if method != "default"]
    found: list[Row] = [{"network": n, "ratio": r, "method": m, "samples": SAMPLES} for n, r, m in grid]
    for name in COUNTED:
        for ratio in COUNTED_RATIOS:
            few = [count for count in COUNTS if count < SAMPLES]
            found += [{"network": name, "ratio": ratio, "method": "default", "samples": count} for count in few]
    return found


def inputs(zoo: Path, name: str, count: int, folder: Path) -> Path:
    """The calibration part of a network's data, at most so many samples."""
    path = folder / f"{name}_{count}.npz"
    if not path.exists():
        done = run([sys.executable, zoo / "zoo.py", "inputs", name, "--out", path, "--n", str(count)])
        if done.code:
            raise RuntimeError(f"{name}: {done.output}{done.message}")
    return path


def score(zoo: Path, name: str, path: Path) -> Row:
    """What the scorer says of a changed network."""
    done = run([sys.executable, zoo / "zoo.py", "score", name, path, "--threads", "1"])
    if done.code:
        raise RuntimeError(f"{name}: {done.output}{done.message}")
    return {key: done.report[key] for key in ("metric", "value", "baseline", "fidelity", "n")}


def measure(zoo: Path, cell: Row, folder: Path) -> Row:
    """Compress with calibration data, and score."""
    name, target = cell["network"], folder / "out.onnx"
    file = json.loads((zoo / "zoo.json").read_text())["models"][name]["file"]
    calib = inputs(zoo, name, cell["samples"], folder)
    options: list[str | Path] = ["--macs", str(cell["ratio"]), "--calib", calib, "--best-effort"]
    done = compress(zoo / file, target, *options, *METHODS[cell["method"]])
    if done.code:
        return cell | {"exit_code": done.code, "message": done.message}
    report = done.report
    told = {"macs": report["macs"]["fraction"], "kept": report["recovery"]["kept"], "seconds": round(done.seconds, 1)}
    return cell | told | score(zoo, name, target)


def peers(zoo: Path, python: Path, name: str, ratios: tuple[float, ...], folder: Path) -> list[Row]:
    """onnxsim's networks with the multiply-adds nearest to each ratio, scored; the better of its two ways."""
    source = zoo / json.loads((zoo / "zoo.json").read_text())["models"][name]["file"]
    calib = inputs(zoo, name, SAMPLES, folder)
    place = folder / f"peer_{name}"
    place.mkdir()
    run([python, "-c", PEER, source, calib, place, *map(str, SPARSITIES)])
    whole = macs_of(source)
    left = {path: macs_of(path) / whole for path in sorted(place.glob("*.onnx"))}
    rows = []
    for ratio in ratios:
        for kind in ("plain", "calibrated"):
            near = min((p for p in left if p.name.startswith(kind)), key=lambda p: abs(left[p] - ratio), default=None)
            row: Row = {"network": name, "ratio": ratio, "method": f"onnxsim {kind}", "samples": SAMPLES}
            rows.append(row | ({"exit_code": 1} if near is None else {"macs": left[near], **score(zoo, name, near)}))
    return rows


def macs_of(path: Path) -> int:
    """Multiply-adds of a model; 0 if it cannot be read."""
    done = run([COMMAND, "inspect", path, "--json"])
    return int(done.report["macs"]) if done.code == 0 else 0


def measure_all(zoo: Path, python: Path | None, only: list[str]) -> None:
    """Every cell that is missing; saved after each."""
    rows: list[Row] = load("recovery")["rows"] if (RESULTS / "recovery.json").exists() else []
    known = {(r["network"], r["ratio"], r["method"], r["samples"]) for r in rows}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cell in cells():
            key = (cell["network"], cell["ratio"], cell["method"], cell["samples"])
            if key not in known and (not only or cell["network"] in only):
                rows.append(measure(zoo, cell, folder))
                progress(json.dumps(rows[-1]))
                save("recovery", {"environment": environment(), "rows": rows})
        for network in MAIN if python else ():
            known_peer = any(r["network"] == network and r["method"].startswith("onnxsim") for r in rows)
            if not known_peer and (not only or network in only):
                rows += peers(zoo, Path(python or ""), network, RATIOS, folder)
                save("recovery", {"environment": environment(), "rows": rows})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("zoo", type=Path, nargs="?", default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="networks to measure")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        measure_all(args.zoo, args.peer, args.only)
    write_page(load("recovery"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

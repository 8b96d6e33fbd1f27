"""Accuracy of onnxsim's pruning followed by onnxsim's own fitting steps, at half of the multiply-adds.

    python -m benchmarks.fitted PYTHON [ZOO] [--only NAME ...]

PYTHON: an interpreter that has onnxsim and onnxruntime. The sparsity is the one at which plain pruning leaves nearest
to half of the multiply-adds. No labels, nothing is timed; networks that are in the results already are not measured
again. ``python -m benchmarks.recovery --page`` writes the page with the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from bisect import bisect_left
from functools import cache
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, Row, environment, load, progress, run, save
from benchmarks.recovery import SAMPLES, SPARSITIES, inputs, macs_of, score
from benchmarks.recovery_page import FITTED

RATIO = 0.5
NETWORKS = ("cifar_resnet_4b", "sri_resnet_a", "oval_cifar_wide")
PRUNE = """
import sys
import onnx, onnxsim
source, folder, *sparsities = sys.argv[1:]
ready, _ = onnxsim.simplify(onnx.load(source))
onnx.save(ready, f"{folder}/ready.onnx")
for sparsity in sparsities:
    onnx.save(onnxsim.apply_structured_pruning(ready, sparsity=float(sparsity)), f"{folder}/plain_{sparsity}.onnx")
"""
FIT = """
import json, sys
import numpy as np, onnx, onnxsim
folder, calib, plain, sparsity, few, many = sys.argv[1:]
ready = onnx.load(f"{folder}/ready.onnx")
data = np.load(calib)
names = [value.name for value in ready.graph.input]
count = min(len(data[name]) for name in names)
def chosen(most):
    places = np.linspace(0, count - 1, min(count, most)).astype(int)
    return [{name: data[name][k : k + 1] for name in names} for k in places]
trained = {}
def distilled(pruned):
    model, blocks = onnxsim.apply_block_finetune_all_blocks(
        ready, pruned, calibration_data=chosen(int(many)), learning_rate=1e-3, batch_size=64
    )
    trained["of"], trained["blocks"] = len(blocks), sum(block.trained for block in blocks)
    return model
models = {
    "plain": onnx.load(plain),
    "calibrated": onnxsim.apply_structured_wanda_pruning(ready, chosen(int(few)), sparsity=float(sparsity)),
}
for kind, pruned in models.items():
    ridge = onnxsim.apply_pruning_finetune(ready, pruned, chosen(int(many)))
    for step, model in {"": pruned, "ridge": ridge, "distilled": distilled(pruned), "both": distilled(ridge)}.items():
        onnx.save(model, f"{folder}/{kind}_{step}.onnx")
print(json.dumps({"version": onnxsim.__version__, "blocks": trained}))
"""
RANKING_SAMPLES, FITTING_SAMPLES = 64, 256


def measure(zoo: Path, python: Path, name: str, folder: Path) -> list[Row]:
    """Prune a network in both ways, fit each in three, and score all."""
    source = zoo / json.loads((zoo / "zoo.json").read_text())["models"][name]["file"]
    calib = inputs(zoo, name, SAMPLES, folder)
    place = folder / f"fitted_{name}"
    place.mkdir()
    run([python, "-c", PRUNE, source, place, *map(str, SPARSITIES)])
    whole = macs_of(source)
    made = {sparsity: place / f"plain_{sparsity}.onnx" for sparsity in SPARSITIES}
    share = cache(lambda sparsity: macs_of(made[sparsity]) / whole)
    first = bisect_left(SPARSITIES, -RATIO, hi=len(SPARSITIES) - 1, key=lambda sparsity: -share(sparsity))
    sparsity = min(SPARSITIES[max(first - 1, 0) : first + 1], key=lambda each: abs(share(each) - RATIO))
    done = run(
        [python, "-c", FIT, place, calib, made[sparsity], str(sparsity), str(RANKING_SAMPLES), str(FITTING_SAMPLES)]
    )
    if done.code:
        raise RuntimeError(f"{name}: {done.message}")
    told = {"network": name, "ratio": RATIO, "sparsity": sparsity, "macs": share(sparsity), **done.report}
    rows = []
    for kind in ("plain", "calibrated"):
        for step in ("", *FITTED):
            path = place / f"{kind}_{step}.onnx"
            rows.append(told | {"kind": kind, "step": step} | score(zoo, name, path))
            progress(json.dumps(rows[-1]))
    return rows


def measure_all(zoo: Path, python: Path, only: list[str]) -> None:
    """Every network that is missing; saved after each."""
    rows: list[Row] = load("fitted")["rows"] if (RESULTS / "fitted.json").exists() else []
    with tempfile.TemporaryDirectory() as name:
        for network in NETWORKS:
            if (not only or network in only) and all(row["network"] != network for row in rows):
                rows += measure(zoo, python, network, Path(name))
                told = {"ranking_samples": RANKING_SAMPLES, "fitting_samples": FITTING_SAMPLES}
                save("fitted", {"environment": environment(), **told, "rows": rows})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitted", description=__doc__)
    parser.add_argument("python", type=Path, help="an interpreter that has onnxsim")
    parser.add_argument("zoo", type=Path, nargs="?", default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="networks to measure")
    args = parser.parse_args(argv)
    measure_all(args.zoo, args.python, args.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

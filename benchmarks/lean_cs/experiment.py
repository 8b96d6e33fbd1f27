"""The stages of the experiment.  Every cell leaves a network in the work folder and a row in the results; what is
there already is not done again.

prune     the original, pruned in one step to each ratio
recover   the same with the surviving weights fitted to what the original computes on a few unlabelled images
finetune  the recovered networks trained on labelled images
chain     as the authors do it: pruned a little, recovered, trained, pruned further
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Row, compress, environment, progress, save
from benchmarks.lean_cs.passes import Network
from benchmarks.lean_cs.stack import Stack, read_stack, write_stack
from benchmarks.lean_cs.training import Scenes, accuracy, scenes, tune
from models.circles_squares import TRAIN_SEED, images

NAME = "lean_cs"
BASE_KERNELS = 1275
RATIOS = (0.5493, 0.4498, 0.3684, 0.3017, 0.2471, 0.2024, 0.1657, 0.1357, 0.1112, 0.091, 0.0745, 0.0611, 0.05)
IMAGES = (2000, 800, 800, 800, 1000, 1000, 1000, 800, 1000, 1000, 1200, 1500, 3500)
"""Images seen at each ratio of a chain."""
FEW, FINE_RATE, COARSE_RATE = 0.2, 1e-3, 2e-3
"""Below this ratio the learning rate is the coarse one."""
CALIBRATION = 8
LAST_LAYER = "conv_final"
METHODS: dict[str, tuple[str, ...]] = {
    "path-mass": ("--method", "path-mass"),
    "free": ("--method", "lean", "--chains", "free"),
    "cover": ("--method", "lean", "--chains", "cover"),
    "norm": ("--method", "norm"),
    "l1": ("--method", "l1"),
    "random": ("--method", "random"),
}
MIXED, FREE = "mixed", (0.12, 0.35)
"""A chain by path mass, but for free chains between these ratios."""
CALIB = "calib"


@dataclass(frozen=True)
class Lab:
    """Where things lie: the original, its 25 test images [N, S, S] with labels, the folder for networks, the data."""

    base: Path
    tests: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
    folder: Path
    data: Scenes

    def network(self, method: str, ratio: float, stage: str) -> Path:
        """The file of a cell."""
        return self.folder / f"{method}_{ratio:g}_{stage}.onnx"

    def score(self, stack: Stack) -> float:
        """Pixel accuracy on the test images."""
        return accuracy(Network(stack), *self.tests)


def lab(zoo: Path, folder: Path) -> Lab:
    """Set up the folder: training scenes, validation images, calibration images."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    calib = folder / f"{CALIB}.npz"
    if not calib.exists():
        np.savez(calib, input=images(CALIBRATION, TRAIN_SEED).images)
    with np.load(zoo / "data" / "cs.npz") as file:
        tests = file["x"], file["y"]
    return Lab(zoo / "models" / "msd_cs.onnx", tests, folder, scenes(folder / "scenes.npz"))


def known(lab: Lab, method: str, ratio: float, stage: str) -> bool:
    """Whether a cell is done."""
    return lab.network(method, ratio, stage).with_suffix(".json").exists()


def enter(lab: Lab, method: str, ratio: float, stage: str, row: Row) -> None:
    """Leave the row of a cell beside its network."""
    row = {"method": method, "ratio": ratio, "stage": stage, **row}
    lab.network(method, ratio, stage).with_suffix(".json").write_text(json.dumps(row))
    progress(json.dumps(row))


def authors(zoo: Path) -> list[Row]:
    """What the authors publish: method, ratio, accuracy on their 50 images, and on the 25 even ones where known."""
    run = json.loads((zoo / "lean_reference.json").read_text())["runs"][0]
    return [
        {
            "method": one["method"],
            "ratio": one["nominal_ratio"],
            "kernels": one["kept_kernels"],
            "published": one["published_accuracy"],
            "even": one.get("recomputed_accuracy_even"),
        }
        for one in run["results"]
    ]


def collect(lab: Lab, zoo: Path) -> Path:
    """Write the results: all rows in the work folder."""
    rows = [json.loads(path.read_text()) for path in sorted(lab.folder.glob("*_*_*.json"))]
    described = environment()
    described["versions"]["torch"] = torch.__version__
    base = {"accuracy": lab.score(read_stack(lab.base)), "images": len(lab.tests[0])}
    found = {"environment": described, "base": base, "calibration": CALIBRATION, "authors": authors(zoo)}
    return save(NAME, {**found, "rows": rows})


def pruned(lab: Lab, source: Path, target: Path, kernels: int, *options: str) -> Row:
    """Prune to at most so many 3x3 kernels; the last layer, of 1x1 kernels, is not counted, as in the paper."""
    before = read_stack(source).kernels
    budget = ["--keep", f"{(kernels + 0.5) / before:.8f}", "--ignore", LAST_LAYER, "--align", "1"]
    done = compress(source, target, *budget, "--calib", lab.folder / f"{CALIB}.npz", *options)
    if done.code:
        raise RuntimeError(f"{target.name}: exit code {done.code}: {done.message}")
    stack = read_stack(target)
    return {"kernels": stack.kernels, "accuracy": lab.score(stack), "seconds": round(done.seconds, 1)}


def one_shot(lab: Lab, methods: Iterable[str], ratios: Iterable[float], stage: str) -> None:
    """Prune the original in one step, and recover it where the stage is that."""
    recover = "auto" if stage == "recover" else "none"
    for ratio in ratios:
        for method in methods:
            if not known(lab, method, ratio, stage):
                options = [*METHODS[method], "--recover", recover]
                row = pruned(lab, lab.base, lab.network(method, ratio, stage), int(ratio * BASE_KERNELS), *options)
                enter(lab, method, ratio, stage, row)


def trained(lab: Lab, source: Path, target: Path, ratio: float, count: int, seed: int = 0) -> Row:
    """Train a network and write it."""
    rate = COARSE_RATE if ratio < FEW else FINE_RATE
    found = tune(read_stack(source), lab.data, count, rate, seed)
    write_stack(found.stack, source, target)
    return {
        "kernels": found.stack.kernels,
        "accuracy": lab.score(found.stack),
        "validation": [found.before, found.after],
        "images": count,
        "rate": rate,
        "seed": seed,
        "seconds": round(found.seconds, 1),
    }


def finetune(lab: Lab, methods: Iterable[str], ratios: Iterable[float], count: int) -> None:
    """Train what was recovered."""
    for ratio in ratios:
        for method in methods:
            if known(lab, method, ratio, "finetune") or not known(lab, method, ratio, "recover"):
                continue
            source, target = (lab.network(method, ratio, stage) for stage in ("recover", "finetune"))
            row = trained(lab, source, target, ratio, count)
            enter(lab, method, ratio, "finetune", row)


def ranking(method: str, ratio: float) -> str:
    """The method by which a chain is pruned to a ratio."""
    if method == MIXED:
        return "free" if FREE[0] < ratio < FREE[1] else "path-mass"
    return method


def chain(lab: Lab, method: str, scale: float) -> None:
    """Prune, recover and train by turns, each ratio from the one before; ``scale`` times the usual images."""
    source = lab.base
    for ratio, count in zip(RATIOS, IMAGES, strict=True):
        target = lab.network(method, ratio, "chain")
        if not known(lab, method, ratio, "chain"):
            start = time.perf_counter()
            step = lab.network(method, ratio, "step")
            cut = pruned(lab, source, step, int(ratio * BASE_KERNELS), *METHODS[ranking(method, ratio)])
            row = trained(lab, step, target, ratio, max(round(count * scale), 1))
            row |= {
                "ranking": ranking(method, ratio),
                "recovered": cut["accuracy"],
                "seconds": round(time.perf_counter() - start, 1),
            }
            enter(lab, method, ratio, "chain", row)
        source = target

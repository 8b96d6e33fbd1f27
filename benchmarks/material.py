"""Trained networks with inputs for calibration and others for scoring: from a folder, or from a zoo with its scorer.

A folder holds ``NAME.onnx``, ``NAME_calib.npz`` with inputs, and ``NAME_score.npz`` with inputs ``x`` and, where there
are any, labels ``y``.  The zoo's scorer (``zoo.py``) writes the two parts of its data; no sample is in both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from benchmarks.common import COMMAND, Row, run
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.subprocess_timing import compare_in_subprocess, time_all_in_subprocess
from leanonnx.runtime.timing import Timing

Part = Literal["calib", "score"]
ZOO_PARTS = {"calib": "calib", "score": "eval"}
MOST_SAMPLES = {"calib": 1000, "score": 4000}
LOOSEST = "1e9"
"""A limit of the deviation that nothing exceeds: ``check`` then only tells it."""
THREADS = 1


@dataclass(frozen=True)
class Material:
    """Where networks and data are.

    Attributes:
        folder: networks of real size, with samples.
        zoo: models, data and their scorer.
        work: what is made here.
    """

    folder: Path
    zoo: Path
    work: Path

    @cached_property
    def _zoo_files(self) -> dict[str, Path]:
        listing = self.zoo / "zoo.json"
        models = json.loads(listing.read_text())["models"] if listing.exists() else {}
        return {name: self.zoo / model["file"] for name, model in models.items()}

    def model(self, name: str) -> Path | None:
        """The file of a network; None if it is not there."""
        path = self.folder / f"{name}.onnx"
        return path if path.exists() else self._zoo_files.get(name)

    def inputs(self, name: str, part: Part) -> Path:
        """Samples of one part."""
        for folder in (self.work, self.folder):
            path = folder / f"{name}_{part}.npz"
            if path.exists():
                return path
        words: list[str | Path] = [sys.executable, self.zoo / "zoo.py", "inputs", name, "--split", ZOO_PARTS[part]]
        path = self.work / f"{name}_{part}.npz"
        done = run([*words, "--n", str(MOST_SAMPLES[part]), "--out", path])
        if done.code:
            raise RuntimeError(f"{name}: {done.output}{done.message}")
        return path

    def unseen(self, name: str, new: Path, launcher: Sequence[str | Path] = ()) -> Row:
        """What ``leanonnx check`` says of a network, and the zoo's scorer where it knows the network.

        ``accuracy``: before and after, where there are labels.

        Args:
            name: the network.
            new: what became of it.
            launcher: command that runs a Python program; empty for the interpreter itself.
        """
        base = self.model(name)
        if base is None:
            raise FileNotFoundError(name)
        data = self.inputs(name, "score")
        done = run([*launcher, COMMAND, "check", base, new, "--data", data, "--max-deviation", LOOSEST, "--json"])
        if not done.report:
            raise RuntimeError(f"{name}: {done.message}")
        if not done.report["deviation"]:
            raise RuntimeError("; ".join(gate["detail"] for gate in done.report["gates"] if gate["status"] == "failed"))
        (deviation,) = done.report["deviation"]
        found: Row = {"samples": deviation["samples"], **worst_of(deviation["outputs"])}
        if deviation["metric"]:
            found["accuracy"] = [deviation["metric"][when] for when in ("before", "after")]
        if base == self._zoo_files.get(name):
            words = [*(launcher or [sys.executable]), self.zoo / "zoo.py", "score", name, new, "--threads", "1"]
            told = run(words).report
            found["zoo"] = {key: told.get(key) for key in ("metric", "fidelity", "n")}
            if told.get("value") is not None:
                found["accuracy"] = [told["baseline"], told["value"]]
        return found


def worst_of(outputs: Row) -> Row:
    """The least agreement, the largest relative error and the least PSNR of the outputs of a report."""
    rows = list(outputs.values())
    agreements = [row["top1"] for row in rows if row["top1"] is not None and not row["vacuous"]]
    deviations = [
        max(row["relative_l2"], (row["worst_channel"] or {"relative_l2": 0.0})["relative_l2"]) for row in rows
    ]
    ratios = [row["psnr"] for row in rows if row["psnr"] is not None]
    return {
        "agreement": min(agreements, default=None),
        "relative_l2": max((row["relative_l2"] for row in rows), default=None),
        "deviation": max(deviations, default=None),
        "psnr": min(ratios, default=None),
    }


def milliseconds(paths: dict[str, Path], seconds: float) -> Row:
    """Networks of one interface by turns in one process and one thread: 10th, 50th and 90th percentile of each."""
    feed = load_dag(next(iter(paths.values()))).observation.feeds
    timings = time_all_in_subprocess(list(paths.values()), [feed] * len(paths), Setting(threads=THREADS), seconds)
    return {name: percentiles(timing) for name, timing in zip(paths, timings, strict=True)}


def percentiles(timing: Timing) -> list[float]:
    """10th, 50th and 90th percentile of a network's milliseconds."""
    return [round(each, 4) for each in (timing.p10, timing.median, timing.p90)]


def times_as_fast(before: Path, after: Path, seconds: float) -> Row:
    """Two networks by turns in one thread: the ratio of their times, with its 95 % interval and noise."""
    feed = load_dag(before).observation.feeds
    timing = compare_in_subprocess(before, after, feed, Setting(threads=THREADS), seconds)
    numbers = {"speedup": timing.speedup, "noise": timing.noise}
    interval = [round(end, 4) for end in timing.interval]
    return {key: round(value, 4) for key, value in numbers.items()} | {"interval": interval, "busy": timing.is_busy}

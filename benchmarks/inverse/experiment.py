"""The cells: every network pruned, recovered and fine-tuned by every strategy that its data allow, scored and timed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.common import COMMAND, RESULTS, Finished, Row, compress, environment, load, progress, run, save
from benchmarks.inverse.images import SIZE
from benchmarks.inverse.operators import TAPS
from benchmarks.inverse.page import NAME, NOISELESS, ORIGINAL, PLAIN, PRUNED, RATIOS, RECOVERED, UNSHARED
from benchmarks.inverse.problems import PARTS, noiseless, psnr
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import open_session

STRATEGIES = {
    "mri": ("supervised", "school", "measurement"),
    "sr": ("supervised", "school", "measurement"),
    "ct": ("supervised", "school", "noise2inverse", "noise2self"),
}
TUNED = (0.25, 0.1)
"""Ratios at which networks are fine-tuned."""
COMPRESSED = {"mri": (PRUNED, RECOVERED, UNSHARED), "sr": (PRUNED, RECOVERED), "ct": (PRUNED, RECOVERED)}
"""Ways to compress; only the first network has layers that share a weight."""
SOURCES = {"supervised": "train", "measurement": "measured", "noise2inverse": "splits"}
"""Parts of the data for strategies that need more than the inputs."""
PHYSICS = {"mri": (SIZE, SIZE), "sr": (1, 1, TAPS + 1, TAPS + 1)}
"""Shape of the initializers that describe the instrument: no training may change them."""
HIDDEN = {"sr": ("--loss-share", "0.1")}
"""Options of ``measurement``: a network that is not told which pixels are hidden shall miss few."""
EPOCHS = {"mri": 6, "sr": 8, "ct": 8}
BATCH = 8
STEP = 20
"""Images of one run when scoring."""
SECONDS = 8


@dataclass(frozen=True)
class Lab:
    """The folder of networks and data."""

    folder: Path

    def data(self, problem: str, part: str) -> Path:
        """A file of data."""
        return self.folder / f"{problem}_{part}.npz"

    def network(self, problem: str, method: str = ORIGINAL, ratio: float = 1.0) -> Path:
        """The file of a network."""
        return self.folder / (f"{problem}.onnx" if method == ORIGINAL else f"{problem}_{ratio:g}_{method}.onnx")


def images(lab: Lab, problem: str, network: Path, rows: slice = slice(None)) -> Array:
    """What a network makes of the inputs to score on."""
    with open_session(network) as session, np.load(lab.data(problem, "score")) as file:
        feeds = {each.name: file[each.name][rows] for each in session.get_inputs()}
        count = len(next(iter(feeds.values())))
        parts = [{k: v[at : at + STEP] for k, v in feeds.items()} for at in range(0, count, STEP)]
        return np.concatenate([session.run(None, part)[0] for part in parts])


def score(lab: Lab, problem: str, network: Path) -> float:
    """PSNR in dB."""
    with np.load(lab.data(problem, "score")) as file:
        return psnr(images(lab, problem, network), file["labels"])


def physics_change(lab: Lab, problem: str, network: Path) -> float | None:
    """Largest change of a number that describes the instrument; None for a network without such numbers.

    Raises:
        KeyError: the network lacks one.
    """
    before, after = (
        {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
        for path in (lab.network(problem), network)
    )
    names = [name for name, value in before.items() if value.shape == PHYSICS.get(problem)]
    changes = [float(np.abs(before[name] - after[name]).max()) for name in names]
    return max(changes, default=None)


def tune(lab: Lab, problem: str, ratio: float, strategy: str) -> Finished:
    """``leanonnx finetune`` of the recovered network."""
    data = lab.data(problem, SOURCES.get(strategy, "inputs"))
    start, target = lab.network(problem, RECOVERED, ratio), lab.network(problem, strategy, ratio)
    words: list[str | Path] = [COMMAND, "finetune", start, target, "--data", data, "--strategy", strategy]
    if strategy == "school":
        words += ["--teacher", lab.network(problem)]
    if strategy == "measurement":
        words += ["--operator", lab.folder / f"{problem}_operator.onnx", *HIDDEN.get(problem, ())]
    return run([*words, "--epochs", str(EPOCHS[problem]), "--batch", str(BATCH), "--json"])


def cell(lab: Lab, problem: str, ratio: float, method: str) -> Row:
    """One network: made, scored, and its instrument compared with the original's."""
    row: Row = {"problem": problem, "ratio": ratio, "method": method}
    source, target = lab.network(problem), lab.network(problem, method, ratio)
    if method == PLAIN:
        with np.load(lab.data(problem, "score")) as file:
            return row | {"psnr": psnr(file["plain"], file["labels"])}
    if method == NOISELESS:
        return row | {"psnr": noiseless()}
    if method == ORIGINAL:
        return row | {"psnr": score(lab, problem, source)}
    if method in (PRUNED, RECOVERED, UNSHARED):
        words: list[str | Path] = [] if method == PRUNED else ["--calib", lab.data(problem, "calib")]
        words += ["--unshare"] if method == UNSHARED else []
        done = compress(source, target, "--macs", str(ratio), *words)
        told = {"macs": done.report["macs"]["fraction"]} if done.code == 0 else {}
    else:
        done, told = tune(lab, problem, ratio, method), {"epochs": EPOCHS[problem]}
    row |= {"seconds": round(done.seconds, 1), "cpu": round(done.cpu, 1)}
    if done.code:
        return row | {"exit_code": done.code, "message": done.message}
    return row | told | {"psnr": score(lab, problem, target), "physics": physics_change(lab, problem, target)}


def cells(problems: list[str]) -> list[tuple[str, float, str]]:
    """Problem, fraction of multiply-adds and method of every cell."""
    wanted = [(problem, 1.0, method) for problem in problems for method in (PLAIN, ORIGINAL)]
    wanted += [("ct", 1.0, NOISELESS)] if "ct" in problems else []
    for ratio in RATIOS:
        wanted += [(problem, ratio, method) for problem in problems for method in COMPRESSED[problem]]
    for ratio in TUNED:
        wanted += [(problem, ratio, method) for problem in problems for method in STRATEGIES[problem]]
    return wanted


def results() -> Row:
    """What has been measured so far."""
    return load(NAME) if (RESULTS / f"{NAME}.json").exists() else {"rows": [], "speed": []}


def measure(lab: Lab, problems: list[str], methods: list[str]) -> None:
    """Every cell that is missing, and with ``methods`` every cell of these; saved after each."""
    data = results()
    for key in cells(problems):
        old = [row for row in data["rows"] if (row["problem"], row["ratio"], row["method"]) == key]
        if (old and key[2] not in methods) or (methods and key[2] not in methods):
            continue
        data["rows"] = [row for row in data["rows"] if row not in old] + [cell(lab, *key)]
        progress(json.dumps(data["rows"][-1]))
        data |= {"environment": environment(), "samples": {part: count for part, (count, _) in PARTS.items()}}
        save(NAME, data)


def time_networks(lab: Lab, problems: list[str]) -> None:
    """Each recovered network against its original by turns, one image at a time in one thread."""
    data = results()
    for problem in problems:
        for ratio in RATIOS:
            pair = [lab.network(problem), lab.network(problem, RECOVERED, ratio)]
            done = run([COMMAND, "bench", *pair, "--threads", "1", "--seconds", str(SECONDS), "--json"])
            if done.code:
                raise RuntimeError(f"{problem} at {ratio:g}: {done.message}")
            (found,) = done.report["results"]
            times = {f"{when}_ms": found[when]["median_ms"] for when in ("before", "after")}
            row = {"problem": problem, "ratio": ratio, **times}
            row |= {key: found[key] for key in ("speedup", "interval", "warnings")}
            data["speed"] = [r for r in data["speed"] if (r["problem"], r["ratio"]) != (problem, ratio)] + [row]
            progress(json.dumps(row))
            save(NAME, data | {"environment": environment()})

"""Cost of calibration: processor seconds and peak memory by stage, beside the forward pass of onnxruntime.

    python -m benchmarks.calibration [FOLDER] [--zoo ZOO] [--only NAME ...] [--page]

FOLDER holds networks of real size as ``NAME.onnx`` with samples in ``NAME_calib.npz``; networks that are not there are
left out.  ZOO is a folder with models, data and their scorer (``zoo.py``).  Each network is compressed in a fresh
process to half of its multiply-adds, without timing.  ``processor`` is user and system time of that process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, Row, environment, load, measured_by, progress, publish, run, save

HALF = 0.5
MEGABYTE = 2**20


@dataclass(frozen=True)
class Case:
    """A network with a number of samples; ``source`` is where it comes from: real, zoo, or the size of a built one."""

    network: str
    samples: int
    source: str = "real"
    shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name in the results."""
        return f"{self.network}_{self.samples}"


CASES = (
    Case("effnet_lite0", 64),
    Case("effnet_lite0", 200),
    Case("crepe_full", 64),
    Case("ppocrv4_rec", 32, shape=(3, 48, 320)),
    Case("resnet50", 128, "built", (3, 224, 224)),
    Case("squeezenet_fp16", 500, "zoo"),
    Case("cifar_resnet_4b", 64, "zoo"),
)
SAMPLES = tuple(Case("oval_cifar_wide", count, "zoo") for count in (250, 1000, 4000, 24000))
DEPTHS = tuple(Case(f"depth{depth}", 32, "sized", (3, 224, 224)) for depth in (26, 50, 101))
WIDTHS = tuple(Case(f"width{width}", 64, "sized", (3, 14, 14)) for width in (256, 512, 1024))
GROWTH: Mapping[str, tuple[Case, ...]] = {"depth": DEPTHS, "width": WIDTHS, "samples": SAMPLES}
"""Cases of growing size."""


def network_of(case: Case, folder: Path, zoo: Path, work: Path) -> Path | None:
    """The file of a network; None if it is not there."""
    if case.source == "real":
        path = folder / f"{case.network}.onnx"
        return path if path.exists() else None
    if case.source == "zoo":
        return zoo / str(json.loads((zoo / "zoo.json").read_text())["models"][case.network]["file"])
    path = work / f"{case.network}.onnx"
    if not path.exists():
        build = (
            ["benchmarks.networks", case.network, str(path), "--folded"]
            if case.source == "built"
            else ["benchmarks.stages", "build", case.network, str(path)]
        )
        run([sys.executable, "-m", *build], ROOT)
    return path


def samples_of(case: Case, folder: Path, zoo: Path, work: Path) -> Path:
    """A file of so many samples: real ones, repeated with shifts if they are too few; smooth noise without any."""
    path = work / f"{case.name}.npz"
    if path.exists():
        return path
    real = folder / f"{case.network}_calib.npz"
    if case.source == "zoo":
        real = work / f"{case.network}_all.npz"
        run([sys.executable, zoo / "zoo.py", "inputs", case.network, "--out", real, "--n", str(case.samples)])
    code = [sys.executable, "-m", "benchmarks.calibration", "--draw", str(case.samples), str(path)]
    shape = [] if real.exists() else ["--shape", *map(str, case.shape)]
    run([*code, *shape, *([str(real)] if real.exists() else [])], ROOT)
    return path


def draw(count: int, path: Path, real: Path | None, shape: Sequence[int]) -> None:
    """Write samples: the real ones, repeated and shifted along the last axis, or random walks of this shape."""
    if real is None:
        rng = np.random.default_rng(0)
        walks = np.cumsum(rng.standard_normal((count, *shape), np.float32), -1)
        np.savez(path, x=(walks / walks.std()).astype(np.float32))
        return
    with np.load(real) as data:
        arrays = {name: data[name] for name in data.files}
    chosen = np.arange(count)
    size = min(len(array) for array in arrays.values())
    drawn: dict[str, Any] = {
        name: np.stack([np.roll(array[k % size], k // size, -1) for k in chosen]) for name, array in arrays.items()
    }
    np.savez(path, **drawn)


def measure(case: Case, model: Path, samples: Path, work: Path) -> Row:
    """Compress in a fresh process, and run the original once over all samples in another."""
    done = run([sys.executable, "-m", "benchmarks.stages", "calibrate", model, samples, work / "out.onnx"], ROOT)
    if done.code:
        return {"case": case.name, "network": case.network, "exit_code": done.code, "message": done.message}
    forward = run([sys.executable, "-m", "benchmarks.stages", "forward", model, samples], ROOT).report
    return {
        "case": case.name,
        "network": case.network,
        "samples": case.samples,
        "megabytes": round(model.stat().st_size / MEGABYTE, 1),
        "processor": round(done.cpu, 1),
        "wall": round(done.seconds, 1),
        "peak_megabytes": round(max(stage["peak"] for stage in done.report["stages"].values()) / MEGABYTE),
        "forward": round(forward["cpu"], 2),
        "stages": done.report["stages"],
    }


def growth(rows: Sequence[Row]) -> float:
    """Exponent of processor seconds in a size: the slope between their logarithms."""
    sizes = np.log([row["size"] for row in rows])
    return float(np.polyfit(sizes, np.log([row["processor"] for row in rows]), 1)[0])


def measure_all(folder: Path, zoo: Path, only: Sequence[str]) -> None:
    """Measure every case, or those of some networks again, and save after each."""
    rows: list[Row] = [row for row in load("calibration")["rows"] if row["network"] not in only] if only else []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for case in (*CASES, *(case for cases in GROWTH.values() for case in cases)):
            if only and case.network not in only:
                continue
            model = network_of(case, folder, zoo, work)
            if model is None:
                continue
            rows.append(measure(case, model, samples_of(case, folder, zoo, work), work))
            progress(json.dumps(rows[-1]))
            save("calibration", {"environment": environment(), "rows": rows})


def write_page(data: Mapping[str, Any]) -> None:
    """Write ``docs/calibration_cost.md`` from the results."""
    rows = {row["case"]: row for row in data["rows"] if "processor" in row}
    publish(
        "calibration_cost",
        "Cost of calibration",
        [
            "Processor seconds and peak memory of `leanonnx compress --macs 0.5 --calib DATA`, and the forward pass of "
            "onnxruntime over the same samples. `multiple` is the processor time of the whole command as a multiple of "
            "that pass.",
            _cost_table([rows[case.name] for case in CASES if case.name in rows]),
            "## Stages\n\nProcessor seconds, and the peak memory of the process during the stage in MB. `look` and "
            "`try` include the part of `select` that follows them.",
            _stage_table([rows[case.name] for case in CASES if case.name in rows]),
            "## Growth\n\nExponent of processor time in a size: bottleneck ResNets by their number of layers, eight "
            "3×3 convolutions by their width, one network by its samples, of which at most 1,024 are used.",
            _growth_table(rows),
            measured_by("calibration", data["environment"]),
        ],
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, rule, *lines))


def _cost_table(rows: Sequence[Row]) -> str:
    head = ("network", "samples", "file, MB", "processor, s", "forward, s", "multiple", "wall, s", "peak, MB")
    cells = (
        (
            row["network"],
            row["samples"],
            row["megabytes"],
            row["processor"],
            row["forward"],
            f"{row['processor'] / row['forward']:.1f}",
            row["wall"],
            row["peak_megabytes"],
        )
        for row in rows
    )
    return _table(head, list(cells))


def _stage_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["stages"]))
    lines = []
    for row in rows:
        stages = row["stages"]
        cells = [f"{s['cpu']:.1f} s, {s['peak'] / MEGABYTE:.0f}" if (s := stages.get(name)) else "" for name in names]
        lines.append([f"{row['network']}, {row['samples']}", *cells])
    return _table(["network, samples", *names], lines)


def _growth_table(rows: Mapping[str, Row]) -> str:
    lines = []
    for axis, cases in GROWTH.items():
        chosen = [rows[case.name] | {"size": _size(axis, case)} for case in cases if case.name in rows]
        if len(chosen) > 1:
            seconds = ", ".join(f"{row['size']}: {row['processor']} s, {row['peak_megabytes']} MB" for row in chosen)
            lines.append([axis, f"{growth(chosen):.2f}", seconds])
    return _table(("size", "exponent", "measured"), lines)


def _size(axis: str, case: Case) -> int:
    return case.samples if axis == "samples" else int(case.network.removeprefix(axis))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT, help="networks of real size, with samples")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="models and scorer")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="networks to measure")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    parser.add_argument("--draw", nargs=2, metavar=("COUNT", "FILE"), help="write samples and stop")
    parser.add_argument("--shape", nargs="*", type=int, default=[], help="shape of a random sample to draw")
    args = parser.parse_args(argv)
    if args.draw:
        draw(int(args.draw[0]), Path(args.draw[1]), None if args.shape else args.folder, args.shape)
        return 0
    if not args.page:
        measure_all(args.folder, args.zoo, args.only)
    write_page(load("calibration"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

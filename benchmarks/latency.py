"""Whether compressed networks run faster: measured against the original, beside onnxsim's at the same multiply-adds.

    python -m benchmarks.latency ZOO [--peer PYTHON] [--seconds S] [--page]

ZOO: a folder of .onnx files; those named in ``FILES`` are used. PYTHON: an interpreter that has onnxsim, whose
structured pruning is run on the same files. Every network is compressed to each of ``KEEPS``, as a user would call
`leanonnx compress`, and timed against its original in turns, in fresh processes; then to a latency budget. Results are
saved after every network; ``--page`` writes the page anew from the last ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import COMMAND, Row, build, environment, load, progress, run, save
from benchmarks.latency_page import write_page
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import Feed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess

KEEPS = (0.9, 0.8, 0.65, 0.5, 0.35, 0.25, 0.1)
THREADS = (1, 2)
SECONDS = 2.0
BUDGET = 0.5
NETWORKS = ("mobilenet_v2", "resnet18", "resnet50", "shufflenet_v2", "efficientnet_b0", "unet")
FILES = (
    "ultraface_rfb320",
    "retinaface_mnet025_640",
    "yolox_nano",
    "nanodet_m_b",
    "pfld_landmarks",
    "deeplab_v3_mnv2",
    "carvana_unet_simp",
    "tcmonodepth_small",
    "ppocr_v3_det",
    "squeezenet_fp16",
)
MSD, MSD_OPTIONS = "msd_cs", ("--keep", "0.05", "--chains", "free")
SPARSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PEER = """
import json, sys
import onnx, onnxsim
source, folder, *sparsities = sys.argv[1:]
ready, _ = onnxsim.simplify(onnx.load(source))
for sparsity in sparsities:
    copy = onnx.ModelProto()
    copy.CopyFrom(ready)
    try:
        onnx.save(onnxsim.apply_structured_pruning(copy, sparsity=float(sparsity)), f"{folder}/{sparsity}.onnx")
    except Exception as error:
        print(sparsity, error, file=sys.stderr)
print(json.dumps({"version": onnxsim.__version__}))
"""


def sources(zoo: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each network."""
    for name in NETWORKS:
        yield name, build(name, folded=True, target=folder / f"{name}.onnx")
    for name in FILES:
        yield name, zoo / f"{name}.onnx"


def compress(source: Path, target: Path, *options: str) -> Row:
    """``leanonnx compress`` with its measurement: exit code, seconds, fractions, warnings, its own speed-up."""
    target.unlink(missing_ok=True)
    done = run([COMMAND, "compress", source, target, "--json", *options])
    row: Row = {"exit_code": done.code, "compress_seconds": round(done.seconds, 2)}
    if done.code:
        return row | {"message": done.message}
    report = done.report
    fractions = {unit: report[unit]["fraction"] for unit in ("kernels", "macs")}
    return row | fractions | {"said": report["latency"], "warnings": report["warnings"]}


def timed(before: Path, after: Path, feed: Feed, threads: int, seconds: float) -> Row:
    """Two models in turns in a fresh process."""
    found = compare_in_subprocess(before, after, feed, Setting(threads=threads), seconds)
    return {
        "before_ms": round(found.before.median, 4),
        "after_ms": round(found.after.median, 4),
        "speedup": round(found.speedup, 4),
        "interval": [round(end, 4) for end in found.interval],
        "noise": round(found.noise, 4),
    }


def peers(python: Path, source: Path, folder: Path) -> tuple[str, dict[Path, float]]:
    """onnxsim's pruned networks at every sparsity: its version, and the fraction of multiply-adds that each keeps."""
    done = run([python, "-c", PEER, source, folder, *map(str, SPARSITIES)])
    before, found = _macs(source), {}
    for path in sorted(folder.glob("*.onnx")):
        after = _macs(path)
        if before and after:
            found[path] = after / before
    return done.report.get("version", ""), found


def _macs(path: Path) -> int:
    done = run([COMMAND, "inspect", path, "--json"])
    return int(done.report["macs"]) if done.code == 0 else 0


def measure(name: str, source: Path, python: Path | None, folder: Path, seconds: float) -> Row:
    """All cells of one network, its noise against itself, and what a latency budget gives."""
    feed = load_dag(source).observation.feeds
    copy, target = folder / "copy.onnx", folder / "out.onnx"
    shutil.copyfile(source, copy)
    alike = {str(threads): timed(source, copy, feed, threads, seconds) for threads in THREADS}
    (folder / "peer").mkdir()
    version, others = peers(python, source, folder / "peer") if python else ("", {})
    cells = []
    for keep in KEEPS:
        done = compress(source, target, "--keep", str(keep))
        if done["exit_code"]:
            done |= {"best_effort": compress(source, target, "--keep", str(keep), "--best-effort")}
            done |= {unit: done["best_effort"].get(unit) for unit in ("kernels", "macs")}
        near = min(others, key=lambda path: abs(others[path] - done["macs"]), default=None)
        for threads in THREADS:
            row: Row = {"keep": keep, "threads": threads, **done, **timed(source, target, feed, threads, seconds)}
            if near is not None:
                row["onnxsim"] = {"macs": others[near], **timed(source, near, feed, threads, seconds)}
            progress(f"{name} {keep} {threads} {json.dumps({k: v for k, v in row.items() if k != 'said'})}")
            cells.append(row)
    budget = compress(source, target, "--latency", str(BUDGET), "--threads", "1")
    if not budget["exit_code"]:
        budget |= timed(source, target, feed, 1, seconds)
    progress(f"{name} latency {json.dumps(budget)}")
    return {"network": name, "alike": alike, "onnxsim": version, "cells": cells, "budget": budget}


def measure_all(zoo: Path, python: Path | None, seconds: float) -> None:
    """Every network, then the paper's MS-D; saved after each."""
    rows: list[Row] = []
    data: Row = {"environment": environment(), "seconds": seconds, "budget": BUDGET, "rows": rows}
    with tempfile.TemporaryDirectory() as work:
        for name, source in sources(zoo, Path(work)):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, source, python, Path(folder), seconds))
            save("latency", data)
        source, target = zoo / f"{MSD}.onnx", Path(work) / "out.onnx"
        data["msd"] = compress(source, target, *MSD_OPTIONS, "--threads", "1")
        data["msd"] |= timed(source, target, load_dag(source).observation.feeds, 1, 4 * seconds)
    save("latency", data)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("zoo", type=Path, nargs="?", help="the folder of .onnx files")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        if args.zoo is None:
            parser.error("give the folder of .onnx files")
        measure_all(args.zoo, args.peer, args.seconds)
    write_page(load("latency"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

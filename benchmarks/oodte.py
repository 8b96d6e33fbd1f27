"""The protocol of OODTE (arXiv 2505.01892) for leanonnx: is a rewritten model valid, and are its outputs the same.

    python -m benchmarks.oodte FOLDER… [--inputs DATA] [--zoo ZOO.py] [--peer PYTHON] [--only NAME…]

FOLDER holds .onnx files, by default those of the collection of real models. Each is rewritten by ``compress --exact``,
and by ``compress --keep 0.5 --best-effort``; the latter is compared with the original in which the entries that the
plan removes are zeros, a mask that ``benchmarks.oodte_judge`` makes without leanonnx. DATA: a folder of real inputs,
``NAME.npz``; a model without a file there gets random numbers, or samples of the collection (ZOO.py). PYTHON: an
interpreter that has onnxsim and onnxoptimizer, which are judged in the same way.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import ROOT, Row, compress, environment, load, progress, run, save, without_folders

COLLECTION = ROOT.parent / "shared" / "zoo"
TOLERANCE = 1e-4
"""Largest difference of an element, as a share of the output's largest number, up to which outputs are the same."""
OWN_FACTOR = 10
"""Outputs that differ count as the original's own noise up to so many times the larger of two differences: of its
optimised from its plain run, and of its outputs when its inputs move by one unit of the last place."""
KEEP = 0.5
ENDED_IN_A_BUG = 3
"""Exit code of leanonnx for a bug; a negative one is a signal."""
PEERS = {
    "onnxsim": "import sys, onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(sys.argv[1]))[0], sys.argv[2])",
    "onnxoptimizer": "import sys, onnx, onnxoptimizer; "
    "onnx.save(onnxoptimizer.optimize(onnx.load(sys.argv[1])), sys.argv[2])",
}
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"


def judge_apart(original: Path, result: Path, plan: Path | None, data: Path | None, sizes: Row) -> Row:
    """Judgement on a model, by a process of its own."""
    module: list[str | Path] = [sys.executable, "-m", "benchmarks.oodte_judge", original, result]
    module += ["--sizes", json.dumps(sizes)]
    for name, path in (("--plan", plan), ("--inputs", data)):
        module += [name, path] if path else []
    done = run(module, ROOT)
    row = done.report or {"status": "not run", "message": without_folders(done.message)[:200]}
    if row["status"] == "compared":
        noise = max(TOLERANCE, OWN_FACTOR * row["own"])
        worst = row["difference"]
        row["status"] = "same" if worst <= TOLERANCE else "own noise" if worst <= noise else "changed"
    return row


def by_leanonnx(original: Path, folder: Path, data: Path | None, options: Sequence[str]) -> Row:
    """Rewrite a model by leanonnx and judge it; against the masked original if channels were removed."""
    result, plan = folder / "lean.onnx", folder / "plan.json"
    for path in (result, plan):
        path.unlink(missing_ok=True)
    done = compress(original, result, *options, "--plan-out", plan)
    if done.code < 0 or done.code >= ENDED_IN_A_BUG:
        return {"status": "crashed", "message": without_folders(done.message)[:200]}
    if done.code:
        return {"status": "refused", "message": without_folders(done.message)[:200]}
    sizes = {name: size for name, size in done.report["inputs"].items() if None not in size}
    row = judge_apart(original, result, None if "--exact" in options else plan, data, sizes)
    return row | {"kernels": done.report["kernels"]["fraction"], "sizes": sizes}


def by_peer(name: str, python: Path, original: Path, folder: Path, data: Path | None, sizes: Row) -> Row:
    """Rewrite a model by another tool and judge it."""
    result = folder / f"{name}.onnx"
    result.unlink(missing_ok=True)
    done = run([python, "-c", PEERS[name], original, result])
    if done.code or not result.exists():
        return {"status": "crashed", "message": without_folders(done.message)[:200]}
    return judge_apart(original, result, None, data, sizes)


def measure(original: Path, folder: Path, data: Path | None, peer: Path | None) -> Row:
    """All rewritings of one model."""
    itself = judge_apart(original, original, None, data, {})
    runs = itself["status"] not in ("not run", "invalid")
    ways: Row = {
        "exact": by_leanonnx(original, folder, data, ["--exact"]),
        "keep": by_leanonnx(original, folder, data, ["--keep", str(KEEP), "--best-effort"]),
    }
    sizes = {**ways["exact"].pop("sizes", {}), **ways["keep"].pop("sizes", {})}
    if peer is not None and runs:
        ways |= {name: by_peer(name, peer, original, folder, data, sizes) for name in PEERS}
    statuses = ", ".join(f"{way} {row['status']}" for way, row in ways.items())
    progress(f"{original.stem}: {statuses}")
    return {"model": original.stem, "runs": runs, "real_inputs": data is not None, **ways}


def totals(rows: Sequence[Row]) -> Row:
    """Numbers of models by tool, of those whose original runs."""
    table: Row = {}
    for way in ("exact", "keep", *PEERS):
        those = [row[way] for row in rows if row["runs"] and way in row]
        if not those:
            continue
        counts = Counter(row["status"] for row in those)
        classifiers = [row for row in those if row.get("classifier")]
        table[way] = {"models": len(those), **{status.replace(" ", "_"): n for status, n in sorted(counts.items())}}
        table[way] |= {
            "classifiers": len(classifiers),
            "classifiers_changed": sum(row["status"] == "changed" for row in classifiers),
            "classifiers_with_another_top1": sum(row["changed_decisions"] > 0 for row in classifiers),
        }
    return table


def real_inputs(original: Path, given: Path | None, zoo: Path | None, folder: Path) -> Path | None:
    """Samples for a model: a file beside it, of the folder given, or of the collection; None if there are none."""
    for place in (
        original.with_name(f"{original.stem}_calib.npz"),
        *([given / f"{original.stem}.npz"] if given else []),
    ):
        if place.is_file():
            return place
    target = folder / f"{original.stem}.npz"
    if zoo is None or not (zoo.parent / "models" / original.name).is_file():
        return None
    done = run([sys.executable, zoo, "inputs", original.stem, "--out", target, "--n", "16"])
    return target if not done.code and target.is_file() else None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oodte", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*", default=[COLLECTION / "models"])
    parser.add_argument("--inputs", type=Path, metavar="DATA")
    parser.add_argument("--zoo", type=Path, default=COLLECTION / "zoo.py")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="an interpreter with onnxsim and onnxoptimizer")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models alone; rows of others stay")
    args = parser.parse_args(argv)
    files = {path.stem: path for folder in args.folders for path in sorted(folder.glob("*.onnx"))}
    rows = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name, path in files.items():
            if args.only is None or name in args.only:
                data = real_inputs(path, args.inputs, args.zoo if args.zoo.is_file() else None, folder)
                rows.append(measure(path.resolve(), folder, data, args.peer))
    if args.only is not None:
        made = {row["model"]: row for row in rows}
        rows = [made.pop(row["model"], row) for row in load("oodte")["rows"]] + list(made.values())
    result = {"environment": environment(), "tolerance": TOLERANCE, "keep": KEEP, "totals": totals(rows), "rows": rows}
    if args.peer is None:
        result |= {"peers": load("oodte")["peers"]} if args.only is not None else {}
    else:
        result["peers"] = run([args.peer, "-c", VERSIONS % (tuple(PEERS),)]).report
    print(json.dumps(result["totals"], indent=1))
    save("oodte", result)
    bad = [row for row in rows for way in ("exact", "keep") if row[way]["status"] in ("crashed", "invalid", "changed")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

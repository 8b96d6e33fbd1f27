"""The page on measured speed, written from the results of ``benchmarks.latency``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from benchmarks.common import Row, measured_by, publish, table

LEAST, MOST = 0.84, 1.04
"""Measured time as a share of a latency budget that counts as meeting it: noise, and widths come in steps."""
MEANING = (
    "Each network compressed by `leanonnx compress --keep F` and timed against its original in onnxruntime's CPU "
    "provider: both in turns in one fresh process, {seconds:g} seconds for each number. *MACs*: fraction of the "
    "multiply-adds left. *1 thread*, *2 threads*: median of before / after with its 95 % interval; above 1 the "
    "compressed network is faster. *efficiency*: that number on one thread times the fraction of multiply-adds; 1 "
    "means that time fell as much as the work did. *onnxsim*: {version}, `simplify` and `apply_structured_pruning` at "
    "the sparsity (of those tried) that comes nearest to the same multiply-adds, timed the same way. It also turns "
    "weights that are listed as graph inputs into constants, from which ultraface_rfb320 gains most of its speed; "
    "leanonnx does so with `--freeze` only, because a caller may override them. A dash: it cannot prune the file."
)


def cells_of(data: Row) -> Iterator[tuple[str, Row]]:
    """Network and cell, for all cells."""
    for row in data["rows"]:
        yield from ((row["network"], cell) for cell in row["cells"])


def efficiency(cell: Row) -> float:
    """Speed-up as a share of what the multiply-adds promise."""
    return float(cell["speedup"] * cell["macs"])


def write_page(data: Row) -> Path:
    """``docs/latency.md`` from the results."""
    version = next((row["onnxsim"] for row in data["rows"] if row["onnxsim"]), "")
    meaning = MEANING.format(seconds=data["seconds"], version=version.removeprefix("v") or "not run")
    sections = [meaning, *_summary(data), "## Efficiency by network", _efficiencies(data)]
    for row in data["rows"]:
        sections += [f"## {row['network']}", _network(row)]
    sections += ["## A latency budget", *_budgets(data), *_msd(data), measured_by("latency", data["environment"])]
    return publish("latency", "Measured speed", sections)


def _summary(data: Row) -> list[str]:
    """What the cells say together."""
    cells = list(cells_of(data))
    noise = {(row["network"], int(threads)): cell for row in data["rows"] for threads, cell in row["alike"].items()}
    below = [(name, cell) for name, cell in cells if cell["speedup"] < 1]
    beyond = [(n, c) for n, c in below if c["interval"][1] < 1 and 1 - c["speedup"] > _floor(noise[n, c["threads"]])]
    peers = [cell["onnxsim"] for _, cell in cells if "onnxsim" in cell]
    slower = sum(peer["speedup"] < 1 for peer in peers)
    widest = max((_floor(cell) for cell in noise.values()), default=0.0)
    lines = [
        f"Of {len(cells)} cells {len(cells) - len(below)} have a median ratio of at least 1; {len(beyond)} are slower "
        f"beyond noise. A file against its own copy differs from 1 by up to {widest:.3f}.",
        f"The lowest ratio is {min(cell['speedup'] for _, cell in cells):.3f}, the median efficiency "
        f"{median(efficiency(cell) for _, cell in cells):.2f}.",
    ]
    if peers:
        lines.append(
            f"onnxsim's networks are slower than the original in {slower} of {len(peers)} cells; the median of its "
            f"efficiencies is {median(efficiency(peer) for peer in peers):.2f}."
        )
    refused = [f"{name} at {cell['keep']:g}" for name, cell in cells if cell["exit_code"] and cell["threads"] == 1]
    if refused:
        lines.append(f"Written with `--best-effort` only: {', '.join(refused)}.")
    return [" ".join(lines)]


def _floor(alike: Row) -> float:
    """How far from 1 a file against its copy may come out."""
    return float(max(abs(1 - end) for end in (*alike["interval"], alike["speedup"])))


def _efficiencies(data: Row) -> str:
    rows = []
    for row in data["rows"]:
        found = [efficiency(cell) for cell in row["cells"]]
        peers = [efficiency(cell["onnxsim"]) for cell in row["cells"] if "onnxsim" in cell]
        lowest = min(row["cells"], key=lambda cell: cell["speedup"])
        speed = f"{lowest['speedup']:.3f} at {lowest['keep']:g}, {_threads(lowest)}"
        peer = (
            [f"{median(peers):.2f}", f"{min(c['onnxsim']['speedup'] for c in row['cells']):.3f}"]
            if peers
            else ["–"] * 2
        )
        rows.append([row["network"], f"{median(found):.2f}", f"{min(found):.2f}", speed, *peer])
    head = ["network", "median", "lowest", "slowest cell", "onnxsim, median", "onnxsim, slowest cell"]
    return table(head, rows)


def _threads(cell: Row) -> str:
    return "1 thread" if cell["threads"] == 1 else f"{cell['threads']} threads"


def _network(row: Row) -> str:
    """One line for each ratio, with both numbers of threads."""
    pairs: dict[float, dict[int, Row]] = {}
    for cell in row["cells"]:
        pairs.setdefault(cell["keep"], {})[cell["threads"]] = cell
    head = ["keep", "MACs", "1 thread", "2 threads", "efficiency", "onnxsim: MACs", "1 thread", "2 threads"]
    return table(head, (_line(keep, found) for keep, found in pairs.items()))


def _line(keep: float, found: dict[int, Row]) -> list[str]:
    peers = [found[threads].get("onnxsim") for threads in (1, 2)]
    there = [f"{peers[0]['macs']:.3f}", *(_ratio(peer) for peer in peers if peer)] if peers[0] else ["–"] * 3
    mine = [_ratio(found[threads]) for threads in (1, 2)]
    return [f"{keep:g}", f"{found[1]['macs']:.3f}", *mine, f"{efficiency(found[1]):.2f}", *there]


def _ratio(cell: Row) -> str:
    low, high = cell["interval"]
    return f"{cell['speedup']:.2f} ({low:.2f}–{high:.2f})"


def _budgets(data: Row) -> Iterable[str]:
    """What `--latency` gave."""
    budget, rows, inside = data["budget"], [], 0
    for row in data["rows"]:
        found = row["budget"]
        if found["exit_code"]:
            rows.append([row["network"], "–", "–", f"{found['compress_seconds']:.0f}", found["message"]])
            continue
        share = 1 / found["speedup"]
        inside += LEAST * budget <= share <= MOST * budget
        said = f"{1 / found['said']['speedup']:.3f}"
        rows.append([row["network"], said, f"{share:.3f}", f"{found['compress_seconds']:.0f}", ""])
    return [
        f"`leanonnx compress --latency {budget:g} --threads 1`: *reported* is the fraction of the original's time that "
        f"it reported, *measured* what another measurement gave; {inside} of {len(rows)} lie within "
        f"{LEAST * budget:.2f} to {MOST * budget:.2f}. *seconds* are those of the whole process.",
        table(["network", "reported", "measured", "seconds", "remark"], rows),
    ]


def _msd(data: Row) -> list[str]:
    """The paper's network."""
    found = data.get("msd")
    if not found or found["exit_code"]:
        return []
    low, high = found["interval"]
    return [
        "## The paper's MS-D network",
        f"`--keep 0.05 --chains free`, one thread: {found['speedup']:.1f} times as fast ({low:.1f}–{high:.1f}), at "
        f"{found['macs']:.4f} of the multiply-adds ({1 / found['macs']:.1f} times fewer): {found['before_ms']:.1f} ms "
        f"to {found['after_ms']:.1f} ms. What eats the rest: every layer puts out one channel, and onnxruntime "
        "computes it in a block of several (16 with AVX-512) that is then laid out anew.",
    ]

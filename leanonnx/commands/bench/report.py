"""What is told of a measurement: plain data for JSON, tables for people, each number with what it means."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from leanonnx.commands.bench.benchmark import BenchRequest, Case
from leanonnx.formatting import counted, shape_text
from leanonnx.reporting.report import SCHEMA, Row, comparison, warned
from leanonnx.runtime.providers import ALGORITHMS, runtime_version
from leanonnx.runtime.timing import MARGIN, Timing, TimingComparison
from leanonnx.system.cores import processor

RATIO = ("speedup", "interval", "noise", "rounds", "lots", "verdict")
MEGA = 1e6
STYLES = {"faster": "green", "slower": "red"}
DEVICE = "inputs and outputs bound in GPU memory (IOBinding): copies to and from it are not timed"
HOST = "inputs and outputs handed over as numpy arrays, which is timed"
MEANING = {
    "p10_ms": "a tenth of the runs took less",
    "median_ms": "half of the runs took less: the time to go by",
    "p90_ms": "a tenth of the runs took longer; far from the median, the machine was busy",
    "session_ms": "to create the session: reading the file, optimising the graph; not part of the latency",
    "first_ms": "first run, which also allocates memory and chooses algorithms; not part of the latency",
    "memory_bytes": "host memory that session, inputs and runs added to the process",
    "fast": "float convolutions in onnxruntime's blocked layout (NCHWc), its fast path",
    "plain": "float convolutions outside it: slower (channel counts that are no multiple of 4, grouped ones)",
    "reorders": "changes between the two layouts, each one more pass over a tensor",
}
LAYOUT = ("fast", "plain", "reorders")
LABEL, CELL = 24, 12
"""Widths of columns, in characters."""
NAMES = {
    "p10_ms": "10th percentile, ms",
    "median_ms": "median, ms",
    "p90_ms": "90th percentile, ms",
    "session_ms": "session, ms",
    "first_ms": "first run, ms",
    "memory_bytes": "memory, MB",
    "fast": "blocked convolutions",
    "plain": "plain convolutions",
    "reorders": "reorders",
}


def summary(source: str, other: str | None, request: BenchRequest, cases: Sequence[Case]) -> Row:
    """The JSON object of ``leanonnx bench``."""
    return {
        "schema": SCHEMA,
        "before": source,
        "after": other,
        "provider": request.setting.provider,
        "fixed": fixed(request),
        "results": [case_row(case) for case in cases],
    }


def fixed(request: BenchRequest) -> Row:
    """What does not change between the measurements, and was chosen by no one but leanonnx or the user."""
    setting = request.setting
    on_gpu = {
        "algo_search": ALGORITHMS,
        "tf32": setting.tf32,
        "cuda_graph": setting.cuda_graph,
    }
    return {
        "onnxruntime": runtime_version(),
        "processor": processor(),
        "inter_op_threads": 1,
        "execution": "sequential",
        "optimisation": "all",
        "denormals": "flushed to zero",
        "spinning": "within a run only",
        "io_binding": setting.on_device,
        **(on_gpu if setting.on_device else {}),
        "input_values": "random",
        "seconds": request.seconds,
        "seed": request.seed,
    }


def case_row(case: Case) -> Row:
    """One measurement: batch, threads, sizes of the inputs, times of both models and their ratio."""
    outcome = case.outcome
    if isinstance(outcome, TimingComparison):
        found = {"before": timing(outcome.before), "after": timing(outcome.after), **comparison(outcome)}
    else:
        found = {"before": timing(outcome), "after": None, **dict.fromkeys(RATIO)}
    return {
        "batch": case.batch,
        "threads": case.setting.threads,
        "inputs": {name: list(shape) for name, shape in case.inputs.items()},
        **found,
        "warnings": list(case.warnings),
    }


def timing(found: Timing) -> Row:
    """The times of one model, rounded to tenths of a microsecond."""
    times = {name: round(getattr(found, name), 4) for name in ("p10", "median", "p90", "session", "first")}
    return {
        **{f"{name}_ms": value for name, value in times.items()},
        "runs": found.runs,
        "memory_bytes": found.memory or None,
        "convolutions": found.layouts and vars(found.layouts),
    }


def tables(row: Row) -> RenderableType:
    """``leanonnx bench`` for people."""
    name = row["before"] if row["after"] is None else f"{row['before']} → {row['after']}"
    parts = [part for result in row["results"] for part in (*_case(result), Text(""))]
    return Group(Text(name, style="bold"), Text(""), *parts, *_fixed(row))


def _case(result: Row) -> list[RenderableType]:
    sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in result["inputs"].items())
    head = Text(f"{counted(result['threads'], 'thread')}, {sizes}", style="bold")
    verdict = _verdict(result) if result["after"] else []
    rows = [(NAMES[key], *(_cell(side, key) for side in _sides(result)), MEANING[key]) for key in NAMES]
    shown = [part for label, *cells, meaning in rows if any(cells) for part in _metric(label, cells, meaning)]
    return [head, *warned(result), *verdict, *_metric("", ["before", "after"] if result["after"] else [], ""), *shown]


def _verdict(result: Row) -> list[RenderableType]:
    low, high = result["interval"]
    ratio = f"{result['speedup']:.3g} times as fast (95 % interval {low:.4g} to {high:.4g})"
    words = result["verdict"]
    meaning = (
        f"median of before / after over {result['rounds']} rounds on {result['lots']} sets of sessions; called a "
        f"difference if the whole interval is further from 1 than the noise ({result['noise']:.1%}) and {MARGIN:.0%}"
    )
    return [Text(f"{words}: {ratio}", style=STYLES.get(words, "bold")), *_meaning(meaning)]


def _sides(result: Row) -> list[Row]:
    return [result["before"]] + ([result["after"]] if result["after"] else [])


def _cell(side: Row, key: str) -> str:
    value = (side["convolutions"] or {}).get(key) if key in LAYOUT else side[key]
    if value is None:
        return ""
    if key in LAYOUT:
        return f"{value}"
    return f"{value / MEGA:.1f}" if key == "memory_bytes" else f"{value:.3f}"


def _metric(label: str, cells: Sequence[str], meaning: str) -> list[RenderableType]:
    """A metric in columns that stand below each other, and what it means in a line below it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=LABEL)
    for _ in cells:
        table.add_column(width=CELL, justify="right")
    table.add_row(label, *cells)
    return [table, *_meaning(meaning)]


def _meaning(text: str) -> list[RenderableType]:
    return [Padding(Text(text, style="dim"), (0, 0, 0, 4), expand=False)] if text else []


def _fixed(row: Row) -> list[RenderableType]:
    """What every number above was measured with."""
    known = row["fixed"]
    lines = [
        f"onnxruntime {known['onnxruntime']} on {row['provider']}, {known['processor']}, in fresh processes",
        "all optimisations, one operator at a time, threads spin within a run only, denormal numbers flushed to zero",
        DEVICE if known["io_binding"] else HOST,
    ]
    if known["io_binding"]:
        on = {True: "on", False: "off"}
        lines += [
            f"TF32 {on[known['tf32']]}, CUDA graph {on[known['cuda_graph']]}, algorithms {known['algo_search']}; "
            "the memory is the host's, not the GPU's"
        ]
    return [Text("Fixed:", style="bold"), *(part for line in lines for part in _meaning(line))]

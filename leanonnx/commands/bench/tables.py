"""Terminal tables of ``leanonnx bench``: each number with its meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from leanonnx.commands.bench.rows import BenchReport, CaseRow, TimingRow
from leanonnx.formatting import count_text, shape_text
from leanonnx.reporting.rows import ComparisonRow
from leanonnx.reporting.tables import warning_lines
from leanonnx.runtime.timing import FASTER, MIN_MARGIN, SLOWER
from leanonnx.spelling import call_text, option, verb

BYTES_PER_MB = 1e6
VERDICT_STYLES = {FASTER: "green", SLOWER: "red"}
DEVICE_MEMORY = "inputs and outputs bound in GPU memory (IOBinding): copies to and from it are not timed"
HOST_MEMORY = "inputs and outputs handed over as numpy arrays, which is timed"
LABEL_WIDTH, CELL_WIDTH = 24, 12
"""Widths of columns, in characters."""


@dataclass(frozen=True)
class TimingLine:
    """A line of the table: its label, its meaning, and the text of its cell for a model, empty if unknown."""

    label: str
    meaning: str
    cell: Callable[[TimingRow], str]


TIMING_LINES = (
    TimingLine("10th percentile, ms", "a tenth of the runs took less", lambda row: f"{row.p10_ms:.3f}"),
    TimingLine("median, ms", "half of the runs took less: use this figure", lambda row: f"{row.median_ms:.3f}"),
    TimingLine(
        "90th percentile, ms",
        "a tenth of the runs took longer; far from the median, the machine was busy",
        lambda row: f"{row.p90_ms:.3f}",
    ),
    TimingLine(
        "session, ms",
        "to create the session: reading the file, optimising the graph; not part of the latency",
        lambda row: f"{row.session_ms:.3f}",
    ),
    TimingLine(
        "first run, ms",
        "first run, which also allocates memory and chooses algorithms; not part of the latency",
        lambda row: f"{row.first_ms:.3f}",
    ),
    TimingLine(
        "memory, MB",
        "host memory that session, inputs and runs added to the process",
        lambda row: "" if row.memory_bytes is None else f"{row.memory_bytes / BYTES_PER_MB:.1f}",
    ),
    TimingLine(
        "blocked convolutions",
        "float convolutions in onnxruntime's blocked layout (NCHWc), its fast path",
        lambda row: "" if row.convolutions is None else f"{row.convolutions.fast}",
    ),
    TimingLine(
        "plain convolutions",
        "float convolutions outside it: slower (channel counts that are no multiple of 4, grouped ones)",
        lambda row: "" if row.convolutions is None else f"{row.convolutions.plain}",
    ),
    TimingLine(
        "reorders",
        "changes between the two layouts, each one more pass over a tensor",
        lambda row: "" if row.convolutions is None else f"{row.convolutions.reorders}",
    ),
)


def bench_tables(report: BenchReport) -> RenderableType:
    """The tables of ``leanonnx bench``."""
    title = report.before if report.after is None else f"{report.before} → {report.after}"
    parts = [part for row in report.results for part in (*_case_parts(row), Text(""))]
    worst = worst_case(report)
    style = "bold" if worst.comparison is None else VERDICT_STYLES.get(worst.comparison.verdict, "bold yellow")
    text = bench_verdict(report)
    ends = [Text(""), Text(f"Next: {bench_next_step(report)}", style="bold"), Text(f"{title}: {text}", style=style)]
    return Group(
        Text(f"{text[:1].upper()}{text[1:]}", style=style), Text(title), Text(""), *parts, *_fixed_parts(report), *ends
    )


def worst_case(report: BenchReport) -> CaseRow:
    """The case with the least speed-up, or the one that takes longest."""
    return min(report.results, key=lambda row: row.comparison.speedup if row.comparison else -row.before.median_ms)


def bench_verdict(report: BenchReport) -> str:
    """The first and last line: the median time, or the ratio of both, in the worst case."""
    worst = worst_case(report)
    where = f", in the worst of {count_text(len(report.results), 'case')}" if len(report.results) > 1 else ""
    if worst.comparison is None:
        times = worst.before
        return f"{times.median_ms:.3f} ms, 10th to 90th percentile {times.p10_ms:.3f} to {times.p90_ms:.3f}{where}"
    low, high = worst.comparison.interval
    ratio = f"{worst.comparison.speedup:.2f} times as fast ({low:.2f} to {high:.2f}){where}"
    return ratio if worst.comparison.verdict == FASTER else f"{worst.comparison.verdict}: {ratio}"


def bench_next_step(report: BenchReport) -> str:
    """The next step, by the verdict of the worst case."""
    row = worst_case(report).comparison
    if row is None:
        return f"make it faster: {call_text('compress', report.before, 'OUT.onnx', latency=0.5)}"
    if row.verdict == FASTER:
        return f"compare what both compute: {call_text('check', report.before, str(report.after))}"
    if row.verdict == SLOWER:
        return f"let `{verb('calibrate-device')}` measure which widths this machine runs fast"
    return f"time them while nothing else runs, and longer: {option('seconds', 4 * report.fixed.seconds)}"


def _case_parts(row: CaseRow) -> list[RenderableType]:
    sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in row.inputs.items())
    head = Text(f"{count_text(row.threads, 'thread')}, {sizes}", style="bold")
    verdict = _verdict_parts(row.comparison) if row.comparison else []
    sides = [row.before] + ([row.after] if row.after else [])
    heads = _line_parts("", ["before", "after"] if row.after else [], "")
    lines = [(line, [line.cell(side) for side in sides]) for line in TIMING_LINES]
    table = [part for line, cells in lines if any(cells) for part in _line_parts(line.label, cells, line.meaning)]
    return [head, *warning_lines(row.warnings), *verdict, *heads, *table]


def _verdict_parts(row: ComparisonRow) -> list[RenderableType]:
    low, high = row.interval
    ratio = f"{row.speedup:.3g} times as fast (95 % interval {low:.4g} to {high:.4g})"
    meaning = (
        f"median of before / after over {row.rounds} rounds on {row.lots} sets of sessions; called a "
        f"difference if the whole interval is further from 1 than the noise ({row.noise:.1%}) and {MIN_MARGIN:.0%}"
    )
    return [Text(f"{row.verdict}: {ratio}", style=VERDICT_STYLES.get(row.verdict, "bold")), *_meaning_parts(meaning)]


def _line_parts(label: str, cells: Sequence[str], meaning: str) -> list[RenderableType]:
    """A line in columns that align with those of other lines, and its meaning below it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=LABEL_WIDTH)
    for _ in cells:
        table.add_column(width=CELL_WIDTH, justify="right")
    table.add_row(label, *cells)
    return [table, *_meaning_parts(meaning)]


def _meaning_parts(text: str) -> list[RenderableType]:
    return [Padding(Text(text, style="dim"), (0, 0, 0, 4), expand=False)] if text else []


def _fixed_parts(report: BenchReport) -> list[RenderableType]:
    """The settings that all measurements share."""
    fixed = report.fixed
    lines = [
        f"onnxruntime {fixed.onnxruntime} on {report.provider}, {fixed.processor}, in fresh processes",
        "all optimisations, one operator at a time, threads spin within a run only, denormal numbers flushed to zero",
        DEVICE_MEMORY if fixed.io_binding else HOST_MEMORY,
    ]
    if fixed.gpu:
        on = {True: "on", False: "off"}
        lines += [
            f"TF32 {on[fixed.gpu.tf32]}, CUDA graph {on[fixed.gpu.cuda_graph]}, algorithms {fixed.gpu.algo_search}; "
            "the memory is the host's, not the GPU's"
        ]
    return [Text("Fixed:", style="bold"), *(part for line in lines for part in _meaning_parts(line))]

"""Sentences and numbers of ``leanonnx check`` that its tables and its reports for CI share."""

from __future__ import annotations

from leanonnx.commands.check.gates import (
    AGREEMENT,
    BATCHES,
    DEVIATION,
    DROP,
    FINITE,
    GATES,
    INTERFACE,
    LATENCY_MS,
    LIMITED_GATES,
    PSNR,
    RUNS,
    SPEEDUP,
    VALID,
)
from leanonnx.commands.check.rows import CheckReport, GateRow
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED
from leanonnx.spelling import option, verb

ROUND_FROM = 1000
"""Numbers from here on are written without decimals."""


def verdict_text(report: CheckReport) -> str:
    """The number of gates that passed, or that failed and their names."""
    status = FAILED if report.failed else PASSED
    count, skipped = len(report.gates_with(status)), len(report.gates_with(SKIPPED))
    names = f": {', '.join(report.failed)}" if report.failed else ""
    return f"{count} of {len(report.gates)} gates {status}{f', {skipped} skipped' if skipped else ''}{names}"


def check_next_step(report: CheckReport) -> str:
    """The next step, by the gravest of the gates that failed."""
    failed = set(report.failed)
    if failed & {VALID, INTERFACE, RUNS, BATCHES, FINITE}:
        return "export or compress NEW again: it cannot take the place of BASE"
    if failed & {DEVIATION, AGREEMENT, PSNR, DROP}:
        return f"train NEW on more data with `{verb('finetune')}`, or remove less"
    if failed & {SPEEDUP, LATENCY_MS}:
        return f"time them again while nothing else runs, with {option('seconds', 20)}"
    if failed:
        return f"remove more, or allow more: {', '.join(report.failed)}"
    if not any(gate.gate in LIMITED_GATES for gate in report.gates):
        return f"set a limit, such as {option('max_deviation', 0.01)}"
    return f"keep this check in CI, which reads what {option('junit')} writes"


def gate_text(gate: GateRow) -> str:
    """The detail of a verdict, or else the meaning of the gate."""
    return gate.detail or GATES[gate.gate].meaning


def limit_text(gate: GateRow) -> str:
    """The limit of a gate, empty if it has none."""
    if gate.limit is None:
        return ""
    return f"{'≥' if GATES[gate.gate].least else '≤'} {number_text(gate.limit)}"


def number_text(value: float | None) -> str:
    """A number of a gate, empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= ROUND_FROM else f"{value:.4g}"


def gate_sentence(gate: GateRow) -> str:
    """A verdict in one line: the numbers, where there are any, and the detail."""
    numbers = f"{number_text(gate.measured)} ({limit_text(gate)})" if gate.limit is not None else ""
    return ": ".join(part for part in (numbers.strip(), gate_text(gate)) if part)

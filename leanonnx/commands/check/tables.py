"""Terminal table of ``leanonnx check``."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.check.rows import CheckReport, GateRow, InputFidelityRow
from leanonnx.commands.check.texts import check_next_step, gate_text, limit_text, number_text, verdict_text
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED
from leanonnx.formatting import count_text, printable_name
from leanonnx.reporting.summary import accuracy_text, worst_output

STATUS_STYLES = {PASSED: "green", FAILED: "bold red", SKIPPED: "yellow"}


def check_tables(report: CheckReport) -> RenderableType:
    """The table of ``leanonnx check``, its notes and the verdict."""
    lines = [_gate_cells(gate) for gate in report.gates]
    table = Table(box=None)
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    for name in columns:
        right = name in ("measured", "limit", "BASE")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "what it says")
    for line in lines:
        table.add_row(*(line[name] for name in columns))
    status = PASSED if report.passed else FAILED
    verdict = Text.assemble(Text(status.upper(), STATUS_STYLES[status]), f": {verdict_text(report)}")
    return Group(
        verdict,
        Text(f"{report.base} → {report.new}", style="bold"),
        table,
        *(Text(f"Note: {text}") for text in report.notes),
        *_inputs_lines(report),
        Text(f"Next: {check_next_step(report)}", style="bold"),
        verdict,
    )


def _gate_cells(gate: GateRow) -> dict[str, str | Text]:
    """The cells of a gate by their heads."""
    return {
        "": Text(gate.status, STATUS_STYLES[gate.status]),
        "gate": gate.gate,
        "measured": number_text(gate.measured),
        "limit": limit_text(gate),
        "BASE": number_text(gate.base),
        "what it says": Text(gate_text(gate)),
    }


def _inputs_lines(report: CheckReport) -> list[Text]:
    """The inputs on which the models were compared, if they were."""
    if not report.deviation:
        return []
    inputs = ", ".join(f"{row.inputs} ({count_text(row.fidelity.samples, 'sample')})" for row in report.deviation)
    sizes = f", and at {count_text(len(report.sizes), 'further size')}" if report.sizes else ""
    compared = Text(f"Compared on {inputs}{sizes}, seed {report.seed}", style="dim")
    return [*map(_accuracy_line, report.deviation), compared]


def _accuracy_line(row: InputFidelityRow) -> Text:
    """The output that deviates most on inputs of one kind, with the interval of its measure."""
    name = worst_output(row.fidelity.outputs)
    text = accuracy_text(row.fidelity.outputs[name])
    which = "" if len(row.fidelity.outputs) == 1 else f", output {printable_name(name)}"
    return Text(f"On {row.inputs}{which}: {text}; in brackets, the 95 % interval over samples")

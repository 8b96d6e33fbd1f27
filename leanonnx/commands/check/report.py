"""Build the report of ``leanonnx check`` from its result."""

from __future__ import annotations

from collections.abc import Mapping

from leanonnx.commands.bench.report import case_row, fixed_row
from leanonnx.commands.check.check import CheckOutcome, CheckRequest
from leanonnx.commands.check.rows import CheckReport, GateRow, GateTimingsRow, InputFidelityRow
from leanonnx.commands.check.verdicts import Verdict
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.formatting import json_value
from leanonnx.reporting.builders import fidelity_row


def check_report(base: str, new: str, request: CheckRequest, result: CheckOutcome) -> CheckReport:
    """The report of ``leanonnx check``; ``base`` and ``new`` are the models as given."""
    return CheckReport(
        base=base,
        new=new,
        passed=not result.failed_gates,
        failed=result.failed_gates,
        gates=tuple(_gate_row(verdict) for verdict in result.verdicts),
        notes=result.notes,
        seed=request.timed.seed,
        deviation=_fidelity_rows(result.fidelities),
        sizes=_fidelity_rows(result.further),
        latency=_timings_row(request, result) if result.cases else None,
        seconds=dict(result.seconds),
    )


def _gate_row(verdict: Verdict) -> GateRow:
    return GateRow(
        gate=verdict.gate,
        status=verdict.status,
        measured=json_value(verdict.measured),
        limit=verdict.limit,
        base=verdict.base,
        detail=verdict.detail,
    )


def _fidelity_rows(fidelities: Mapping[str, Fidelity]) -> tuple[InputFidelityRow, ...]:
    return tuple(InputFidelityRow(name, fidelity_row(one)) for name, one in fidelities.items())


def _timings_row(request: CheckRequest, result: CheckOutcome) -> GateTimingsRow:
    provider = request.timed.setting.provider
    return GateTimingsRow(provider, fixed_row(request.timed), tuple(case_row(case) for case in result.cases))

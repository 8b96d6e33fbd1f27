"""Build the report of ``leanonnx bench`` from its measurements."""

from __future__ import annotations

from collections.abc import Sequence

from leanonnx.commands.bench.benchmark import BenchCase, BenchRequest
from leanonnx.commands.bench.rows import BenchReport, CaseRow, FixedRow, GpuRow, TimingRow
from leanonnx.reporting.builders import comparison_row
from leanonnx.runtime.providers import CUDNN_ALGORITHM_SEARCH, runtime_version
from leanonnx.runtime.timing import Timing, TimingComparison
from leanonnx.system.cores import processor_name


def bench_report(source: str, other: str | None, request: BenchRequest, cases: Sequence[BenchCase]) -> BenchReport:
    """The report of ``leanonnx bench``; ``source`` and ``other`` are the titles of the models."""
    return BenchReport(
        before=source,
        after=other,
        provider=request.setting.provider,
        fixed=fixed_row(request),
        results=tuple(case_row(case) for case in cases),
    )


def fixed_row(request: BenchRequest) -> FixedRow:
    """The settings that all measurements of a request share."""
    setting = request.setting
    return FixedRow(
        onnxruntime=runtime_version(),
        processor=processor_name(),
        inter_op_threads=1,
        execution="sequential",
        optimisation="all",
        denormals="flushed to zero",
        spinning="within a run only",
        io_binding=setting.uses_gpu,
        gpu=GpuRow(CUDNN_ALGORITHM_SEARCH, setting.tf32, setting.cuda_graph) if setting.uses_gpu else None,
        input_values="random",
        seconds=request.seconds,
        seed=request.seed,
    )


def case_row(case: BenchCase) -> CaseRow:
    """One measurement: of two models taken in turns, or of one alone."""
    outcome, comparison = case.outcome, None
    if isinstance(outcome, TimingComparison):
        before, after, comparison = _timing_row(outcome.before), _timing_row(outcome.after), comparison_row(outcome)
    else:
        before, after = _timing_row(outcome), None
    return CaseRow(
        batch=case.batch,
        threads=case.setting.threads,
        inputs=case.inputs,
        before=before,
        after=after,
        comparison=comparison,
        warnings=case.warnings,
    )


def _timing_row(timing: Timing) -> TimingRow:
    """The times of one model, rounded to tenths of a microsecond."""
    return TimingRow(
        p10_ms=round(timing.p10, 4),
        median_ms=round(timing.median, 4),
        p90_ms=round(timing.p90, 4),
        session_ms=round(timing.session, 4),
        first_ms=round(timing.first, 4),
        runs=timing.runs,
        memory_bytes=timing.memory or None,
        convolutions=timing.layouts,
    )

"""Build the report of ``leanonnx compress`` from its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from leanonnx.commands.compress.judging import inputs_name
from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.evaluation.judgement import Judgement
from leanonnx.evaluation.tolerances import Look, ToleranceCurve
from leanonnx.formatting import json_value
from leanonnx.quantization.result import Quantisation
from leanonnx.recovery.draft import Recovery
from leanonnx.reporting.builders import (
    comparison_row,
    fidelity_row,
    input_shapes,
    latency_row,
    layer_rows,
    pin_rows,
    product_rows,
    proof_row,
    runtimes_row,
    uncounted_nodes,
)
from leanonnx.reporting.costs import cost_changes, cost_counts
from leanonnx.reporting.encoding import from_json
from leanonnx.reporting.reports import (
    CompressionReport,
    DataFreeRow,
    JudgementRow,
    LookRow,
    LosslessRow,
    NumberFormatRow,
    QuantisationRow,
    ReadingRow,
    RecoveryRow,
    ReplacedRow,
    ToleranceRow,
)
from leanonnx.reporting.summary import SummaryContext
from leanonnx.selection.search import Trial


def compression_report(result: CompressResult) -> CompressionReport:
    """The report of ``leanonnx compress``."""
    dag = result.dag
    return CompressionReport(
        headline=result.headline,
        costs=cost_changes(cost_counts(result.before), cost_counts(result.after)),
        proof=proof_row(result.proof),
        pins=pin_rows(dag, result.alive),
        layers=layer_rows(dag, result.alive),
        products=product_rows(dag, result.alive),
        branches=result.branches,
        copied=result.copied,
        folded=tuple(result.folded),
        uncounted=uncounted_nodes(dag),
        latency=latency_row(result.latency, result.setting),
        replaced=_replaced_row(result.replaced),
        recovery=_recovery_row(result.recovery, result.plan.options),
        data_free=None if result.data_free is None else from_json(DataFreeRow, result.data_free.row()),
        judgement=_judgement_row(result.judgement, inputs_name(result.recovery, result.quantisation)),
        tolerance=None if result.curve is None else tolerance_row(result.curve),
        quantisation=_quantisation_row(result.quantisation),
        weights_from=None if result.restored is None else str(result.restored),
        tidied=dict(result.tidied),
        lossless=None if result.exact is None else from_json(LosslessRow, result.exact),
        inputs=input_shapes(dag),
        seconds=dict(result.seconds),
        warnings=tuple(result.warnings),
        hints=tuple(result.hints),
        runtimes=tuple(map(runtimes_row, result.runtimes)) or None,
    )


def summary_context(result: CompressResult, source: str, output: str) -> SummaryContext:
    """The rest of what the summary of a compression needs; ``source`` and ``output`` are the paths as given."""
    setting = result.setting
    provider = {} if setting.provider == "cpu" else {"provider": setting.provider}
    return SummaryContext(
        options=result.plan.options,
        source=source,
        output=output,
        images=result.images,
        libraries=tuple(map(str, result.dag.model.libraries)),
        timed={**provider, "threads": setting.threads},
    )


def _replaced_row(first: Trial | None) -> ReplacedRow | None:
    if first is None or first.comparison is None:
        return None
    before, after = (cost_counts(cost) for cost in (first.selection.before, first.selection.after))
    return ReplacedRow(cost_changes(before, after), comparison_row(first.comparison))


def _judgement_row(judgement: Judgement | None, inputs: str) -> JudgementRow | None:
    if judgement is None:
        return None
    return JudgementRow(
        kind=judgement.kind,
        output=judgement.output,
        samples=judgement.samples,
        on=inputs,
        agreement=judgement.agreement,
        agreement_bound=judgement.agreement_bound,
        chance=judgement.chance,
        relative_l2=json_value(judgement.relative_l2),
        mean_l2=judgement.mean_l2,
    )


def _quantisation_row(quantisation: Quantisation | None) -> QuantisationRow | None:
    if quantisation is None:
        return None
    kept, nodes, timing = quantisation.is_kept, quantisation.nodes, quantisation.comparison
    return QuantisationRow(
        kept=kept,
        reason=quantisation.reason or None,
        formats=quantisation.formats,
        ranges=quantisation.method or None,
        corrections=quantisation.corrections,
        added_error=None if quantisation.error is None else json_value(quantisation.error),
        opset_raised_from=quantisation.raised_from,
        samples=quantisation.samples,
        held_out=quantisation.held_out,
        before=None if quantisation.before is None else fidelity_row(quantisation.before),
        after=None if quantisation.after is None else fidelity_row(quantisation.after),
        simulation_steps=None if quantisation.steps is None else json_value(quantisation.steps),
        integer_nodes=None if nodes is None else nodes.layers,
        conversions=None if nodes is None else nodes.conversions,
        comparison=None if timing is None else comparison_row(timing),
        layers=tuple(
            NumberFormatRow(
                name=layer.name,
                operator=layer.operator,
                format="float32" if layer.reason or not kept else "int8",
                reason=layer.reason or None,
            )
            for layer in quantisation.layers
        ),
    )


def tolerance_row(curve: ToleranceCurve) -> ToleranceRow:
    """The candidates that were judged by tolerances."""
    return ToleranceRow(
        unit=curve.unit,
        samples=curve.samples,
        confidence=curve.confidence,
        allowed=curve.allowed,
        met=curve.looks[curve.chosen].met,
        chosen=curve.chosen,
        looks=tuple(_look_row(look) for look in curve.looks),
        ended=curve.ended or None,
    )


def _look_row(look: Look) -> LookRow:
    readings: dict[str, ReadingRow] = {
        reading.name: ReadingRow(
            value=_finite(reading.value), bound=_finite(reading.bound), limit=reading.limit, met=reading.met
        )
        for reading in look.readings
    }
    return LookRow(
        fraction=look.fraction, macs=look.macs, readings=readings, met=look.met, seconds=round(look.seconds, 3)
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _recovery_row(recovery: Recovery | None, options: Mapping[str, Any]) -> RecoveryRow | None:
    if recovery is None:
        return None
    return RecoveryRow(
        samples=recovery.samples,
        held_out=recovery.held_out,
        parts=recovery.parts,
        effort=options["effort"],
        minutes=options.get("minutes"),
        kept=recovery.kept,
        deviation=fidelity_row(recovery.final),
        removed=fidelity_row(recovery.removed),
        layers=tuple(
            replace(row, before=json_value(row.before), after=json_value(row.after)) for row in recovery.layers
        ),
    )

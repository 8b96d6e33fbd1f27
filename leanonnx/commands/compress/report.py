"""Build the report of ``leanonnx compress`` from its result."""

from __future__ import annotations

from dataclasses import replace

from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.formatting import json_value
from leanonnx.recovery.draft import Recovery
from leanonnx.reporting.builders import (
    fidelity_row,
    input_shapes,
    latency_row,
    layer_rows,
    pin_rows,
    product_rows,
    proof_row,
    uncounted_nodes,
)
from leanonnx.reporting.costs import cost_changes, cost_counts
from leanonnx.reporting.encoding import from_json
from leanonnx.reporting.reports import CompressionReport, DataFreeRow, LosslessRow, RecoveryRow


def compression_report(result: CompressResult) -> CompressionReport:
    """The report of ``leanonnx compress``."""
    dag = result.dag
    return CompressionReport(
        costs=cost_changes(cost_counts(result.before), cost_counts(result.after)),
        proof=proof_row(result.proof),
        pins=pin_rows(dag, result.alive),
        layers=layer_rows(dag, result.alive),
        products=product_rows(dag, result.alive),
        folded=tuple(result.folded),
        uncounted=uncounted_nodes(dag),
        latency=latency_row(result.latency, result.setting),
        recovery=_recovery_row(result.recovery),
        data_free=None if result.data_free is None else from_json(DataFreeRow, result.data_free.row()),
        weights_from=None if result.restored is None else str(result.restored),
        tidied=dict(result.tidied),
        lossless=None if result.exact is None else from_json(LosslessRow, result.exact),
        inputs=input_shapes(dag),
        seconds=dict(result.seconds),
        warnings=tuple(result.warnings),
        hints=tuple(result.hints),
    )


def _recovery_row(recovery: Recovery | None) -> RecoveryRow | None:
    if recovery is None:
        return None
    return RecoveryRow(
        samples=recovery.samples,
        held_out=recovery.held_out,
        kept=recovery.kept,
        deviation=fidelity_row(recovery.final),
        removed=fidelity_row(recovery.removed),
        layers=tuple(
            replace(row, before=json_value(row.before), after=json_value(row.after)) for row in recovery.layers
        ),
    )

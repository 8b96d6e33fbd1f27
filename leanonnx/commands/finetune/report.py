"""What is told of a training: plain data for JSON, tables for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.finetune.driver import FinetuneResult
from leanonnx.commands.finetune.parity import RoundTrip
from leanonnx.commands.finetune.steps import PruningSteps
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.formatting import counted, finite
from leanonnx.reporting.report import SCHEMA, Row, warned, worst_channel
from leanonnx.selection.metrics import COUNTED_METRICS


def summary(result: FinetuneResult) -> Row:
    """The JSON object of ``leanonnx finetune``."""
    trained = result.trained
    return {
        "schema": SCHEMA,
        "strategy": result.strategy,
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "resumed_epoch": trained.resumed,
        "loss": [{"train": finite(a), "held_out": finite(b)} for a, b in trained.history],
        "held_out": {
            "samples": result.samples[1],
            "loss": {"before": finite(trained.before), "after": finite(trained.after)},
            "reference": str(result.reference),
            "metric": result.after.metric,
            "before": _fidelity(result.before),
            "after": _fidelity(result.after),
        },
        "samples": result.samples[0],
        "parameters": result.parameters,
        "batches": result.way,
        "round_trip": {"before": _trip(result.trips[0]), "after": _trip(result.trips[1])},
        "seconds": dict(result.seconds),
        "warnings": list(result.warnings),
    }


def steps_summary(stepped: PruningSteps) -> Row:
    """The JSON object of ``leanonnx finetune --steps``: that of the last step, and all steps."""
    rows = [
        {
            "step": k + 1,
            stepped.unit: {"wanted": step.fraction, "reached": step.reached},
            "file": None if step.path is None else str(step.path),
            **{key: value for key, value in summary(step.result).items() if key != "schema"},
        }
        for k, step in enumerate(stepped.steps)
    ]
    return {**summary(stepped.steps[-1].result), "steps": rows}


def _trip(trip: RoundTrip) -> Row:
    return {"max_relative_error": trip.error, "bound": trip.bound, "inputs": trip.inputs}


def _fidelity(found: Fidelity) -> Row:
    """Deviation by output, with the metric of the model itself where there are labels."""
    rows: dict[str, Any] = {
        deviation.output: {
            **{key: finite(value) for key, value in asdict(deviation).items() if key not in ("output", "channels")},
            "worst_channel": worst_channel(deviation.channels),
        }
        for deviation in found.outputs
    }
    return {"outputs": rows, "value": finite(found.after)}


def tables(row: Row, target: str) -> RenderableType:
    """``leanonnx finetune`` for people."""
    held = row["held_out"]
    done = f"trained on {counted(row['samples'], 'sample')}, {counted(row['epochs'], 'epoch')}"
    head = f"{row['strategy']}: {counted(row['parameters'], 'parameter')} {done}"
    table = Table(box=None, pad_edge=False)
    for name in (f"on {counted(held['samples'], 'held-out sample')}", "before", "after"):
        table.add_column(name, justify="left" if name[0] == "o" else "right")
    table.add_row("loss", *(_text(held["loss"][side], "{:.4g}") for side in ("before", "after")))
    if held["metric"]:
        table.add_row(held["metric"], *(_text(held[side]["value"], "{:.4g}") for side in ("before", "after")))
    for name in held["before"]["outputs"]:
        sides = [held[side]["outputs"][name] for side in ("before", "after")]
        for key, words, form in (
            ("relative_l2", "relative error", "{:.4f}"),
            ("top1", "same class", "{:.1%}"),
            ("psnr", "PSNR, dB", "{:.1f}"),
        ):
            if sides[0][key] is not None:
                table.add_row(f"{name}: {words}", *(_text(side[key], form) for side in sides))
    steps = [_step_line(step) for step in row.get("steps", [])]
    trip = row["round_trip"]["after"]
    end = f"Wrote {target}: epoch {row['best_epoch']}, torch and onnxruntime agree to {trip['max_relative_error']:.1e}"
    return Group(Text(head, style="bold"), *warned(row), *steps, table, Text(""), Text(end))


def _step_line(step: Row) -> Text:
    unit = next(metric.name for metric in COUNTED_METRICS if metric.name in step)
    loss = step["held_out"]["loss"]
    before, after = (_text(loss[side], "{:.4g}") for side in ("before", "after"))
    return Text(f"step {step['step']}: {step[unit]['reached']:.4f} of the {unit}, held-out loss {before} → {after}")


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)

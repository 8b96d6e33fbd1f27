"""What is told of a compression: plain data for JSON, tables for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.analysis.cost import Cost, cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.analysis.product_costs import products
from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.slices import ChannelDeviation
from leanonnx.formatting import counted, finite, metric_text, sizes
from leanonnx.graph.nodes import name_of, title
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.recovery.draft import Recovery
from leanonnx.reporting.remarks import changed, remarks
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.limits import held_back
from leanonnx.selection.metrics import COUNTED_METRICS, METRICS

SCHEMA = 1
Row = dict[str, Any]


def summary(result: CompressResult) -> Row:
    """The JSON object of ``leanonnx compress``."""
    dag = result.dag
    return {
        "schema": SCHEMA,
        **_changes(result.before, result.after),
        "proof": {
            "status": result.proof.status,
            "max_relative_error": result.proof.max_relative_error,
            "bound": result.proof.bound,
            "inputs": result.proof.inputs,
            "sizes": result.proof.sizes,
            "outputs": result.proof.outputs,
        },
        "pins": pins(dag, result.alive),
        "layers": layers(dag, result.alive),
        "products": product_rows(dag, result.alive),
        "folded": list(result.folded),
        "uncounted": uncounted_nodes(dag),
        "latency": latency(result.latency, result.setting),
        "recovery": recovery(result.recovery),
        "blind": result.blind and result.blind.row(),
        "weights_from": None if result.restored is None else str(result.restored),
        "tidied": dict(result.tidied),
        "exact": None if result.exact is None else dict(result.exact),
        "inputs": input_sizes(dag),
        "seconds": dict(result.seconds),
        "warnings": list(result.warnings),
        "hints": list(result.hints),
    }


def latency(found: TimingComparison | None, setting: Setting) -> Row | None:
    """Measured time of one run before and after; None if it was not measured."""
    if found is None:
        return None
    layouts = [side.layouts and asdict(side.layouts) for side in (found.before, found.after)]
    return {
        "provider": setting.provider,
        "threads": setting.threads,
        "before_ms": round(found.before.median, 4),
        "after_ms": round(found.after.median, 4),
        **comparison(found),
        "busy": found.busy,
        "convolutions": {"before": layouts[0], "after": layouts[1]},
    }


def comparison(found: TimingComparison) -> Row:
    """The ratio of two models' times."""
    return {
        "speedup": round(found.speedup, 4),
        "interval": [round(end, 4) for end in found.interval],
        "noise": round(found.noise, 4),
        "rounds": found.rounds,
        "lots": found.lots,
        "verdict": found.words,
    }


def recovery(found: Recovery | None) -> Row | None:
    """How near the result comes to the original on real inputs; None without any.

    ``deviation`` is that of what was written, ``removed`` that of the network before its weights were changed; a number
    that is infinite is given as null.
    """
    if found is None:
        return None
    return {
        "samples": found.samples,
        "held_out": found.held_out,
        "kept": found.kept,
        "deviation": fidelity(found.final),
        "removed": fidelity(found.removed),
        "layers": [{key: finite(value) for key, value in asdict(layer).items()} for layer in found.layers],
    }


def fidelity(found: Fidelity) -> Row:
    """Deviation of each output, of all of it and of the channel where it is worst, and the metric with labels where
    there are any.
    """
    outputs = {}
    for one in found.outputs:
        outputs[one.output] = {
            "relative_l2": finite(one.relative_l2),
            "psnr": finite(one.psnr),
            "top1": one.top1,
            "top5": one.top5,
            "worst_channel": worst_channel(one.channels),
            "vacuous": one.vacuous or None,
        }
    metric = None
    if found.metric is not None:
        metric = {"name": found.metric, "better": found.better, "before": found.before, "after": found.after}
    return {"samples": found.samples, "outputs": outputs, "metric": metric}


def worst_channel(found: ChannelDeviation | None) -> Row | None:
    """The slice of an output that deviates most; None where it has none, a number that is infinite is given as null."""
    return (
        None if found is None else {"axis": found.axis, "index": found.index, "relative_l2": finite(found.relative_l2)}
    )


def input_sizes(dag: ChannelDag) -> dict[str, list[int]]:
    """Sizes of the graph inputs that multiply-adds and proofs refer to."""
    return {value.name: list(dag.shapes[value.name]) for value in dag.model.inputs}


def _changes(before: Cost, after: Cost) -> Row:
    return {metric.name: _change(metric.count(before), metric.count(after)) for metric in COUNTED_METRICS}


def _change(before: int, after: int) -> Row:
    return {"before": before, "after": after, "fraction": round(after / before, 6) if before else 1.0}


def layers(dag: ChannelDag, alive: Mask) -> list[Row]:
    """Channels read and put out by each mixing node, before and after, with its kernels."""
    rows = []
    for node, mix in dag.kernel_blocks:
        proto = dag.model.proto.graph.node[node]
        kernels = int((alive[mix.destinations].sum(1) * alive[mix.sources].sum(1)).sum())
        before = mix.sources.shape[0] * mix.sources.shape[1] * mix.destinations.shape[1]
        rows.append(
            {
                "name": proto.name or proto.output[0],
                "operator": proto.op_type,
                "groups": [mix.sources.shape[0], int(alive[mix.destinations].any(1).sum())],
                "in": _width(mix.sources, alive),
                "out": _width(mix.destinations, alive),
                "kernels": [before * mix.counted, kernels * mix.counted],
                "macs": [before * mix.taps * mix.positions, kernels * mix.taps * mix.positions],
            }
        )
    return rows


def uncounted_nodes(dag: ChannelDag) -> list[str]:
    """Operators whose multiply-adds nobody knows."""
    return [title(dag.model.proto.graph.node[k]) for k in products(dag)[1]]


def product_rows(dag: ChannelDag, alive: Mask) -> list[Row]:
    """Multiply-adds before and after of nodes whose multiply-adds no kernels account for."""
    rows: dict[int, Row] = {}
    for product in products(dag)[0]:
        proto = dag.model.proto.graph.node[product.node]
        row = rows.setdefault(product.node, {"name": name_of(proto), "operator": proto.op_type, "macs": [0, 0]})
        row["macs"] = [row["macs"][0] + product.macs, row["macs"][1] + product.surviving(alive)]
    return list(rows.values())


def _width(channel_ids: ChannelIds, alive: Mask) -> list[int]:
    return [int(channel_ids.size), int(alive[channel_ids].sum())]


def pins(dag: ChannelDag, alive: Mask) -> list[Row]:
    """Pinned channels with the reason and the living kernels that touch them."""
    held = held_back(dag, cost_model(dag), alive, dag.pins, by=lambda pin: (pin.tensor, pin.reason))
    found: dict[tuple[str, str], Row] = {}
    for pin in dag.pins:
        row = {"tensor": pin.tensor, "channels": int(pin.channel_ids.size), "reason": pin.reason, "advice": pin.advice}
        found.setdefault((pin.tensor, pin.reason), {**row, "kernels": held[pin.tensor, pin.reason]})
    return sorted(found.values(), key=lambda row: (-row["kernels"], row["tensor"]))


def result_tables(row: Row, source: str, target: str) -> RenderableType:
    """The summary of a compression for people."""
    head = Text(f"{source} → {target}", style="bold")
    error, against = row["proof"]["max_relative_error"], "original" if row["exact"] else "masked original"
    proof = Text(
        f"Proof {row['proof']['status'].upper()}: {'before its weights were changed, ' if changed(row) else ''}"
        f"equal to the {against} within {error:.1e} "
        f"(bound {row['proof']['bound']:.0e}) on {row['proof']['inputs']} inputs{_at_sizes(row['proof']['sizes'])}",
        style="green" if row["proof"]["status"] == "passed" else "red",
    )
    notes = warned(row) + [Text(f"Hint: {text}") for text in row["hints"]] + [Text(line) for line in remarks(row)]
    return Group(
        head,
        *notes,
        _cost_table(row),
        layer_table(row["layers"]),
        *product_table(row["products"]),
        pin_table(row["pins"]),
        proof,
        *_deviation_parts(row["recovery"]),
        _latency_text(row["latency"]),
    )


def _at_sizes(count: int) -> str:
    return f" at {count} sizes" if count > 1 else ""


def warned(row: Row) -> list[Text]:
    """The warnings of a JSON object."""
    return [Text(f"Warning: {text}", style="yellow") for text in row["warnings"]]


def _deviation_parts(row: Row | None) -> list[RenderableType]:
    """How near the result comes to the original, output by output."""
    if row is None:
        return []
    columns = {"psnr": "PSNR (dB)", "top1": "top-1 agreement", "top5": "top-5"}
    table = Table(box=None)
    table.add_column("output")
    for text in ("relative L2", "worst channel", *columns.values()):
        table.add_column(text, justify="right")
    for name, now in row["deviation"]["outputs"].items():
        first = row["removed"]["outputs"][name]
        whole = _moved(first["relative_l2"], now["relative_l2"], row["kept"])
        table.add_row(name, whole, _channel(now), *(_moved(first[key], now[key], row["kept"]) for key in columns))
    held = "held-out " if row["held_out"] else ""
    samples = counted(row["deviation"]["samples"], f"{held}sample")
    head = f"Deviation from the original on {samples}" + (", before → after recovery" if row["kept"] else "")
    parts: list[RenderableType] = [Text(head), table]
    metric = row["deviation"]["metric"]
    if metric:
        parts.append(Text(metric_text(metric)))
    return parts


def _channel(now: Row) -> str:
    """The channel of what is written that deviates most, by its own scale."""
    worst = now["worst_channel"]
    if worst is None:
        return ""
    return f"{'∞' if worst['relative_l2'] is None else format(worst['relative_l2'], '.4g')} (no. {worst['index']})"


def _moved(first: float | None, now: float | None, kept: bool) -> str:
    if now is None:
        return "" if first is None else "∞"
    return f"{first:.4g} → {now:.4g}" if kept and first is not None else f"{now:.4g}"


def _latency_text(row: Row | None) -> Text:
    if row is None:
        return Text("Latency was not measured.", style="dim")
    low, high = row["interval"]
    text = f"{row['speedup']:.2f} times the speed (95 % interval {low:.2f} to {high:.2f}) on {row['provider']}, "
    text += counted(row["threads"], "thread")
    if row["busy"]:
        text += "; the machine was busy: trust the ratio, taken in turns, not the milliseconds"
    return Text(text, style="green" if low > 1 else "yellow")


def _cost_table(row: Row) -> Table:
    table = Table(box=None)
    for column in ("", "before", "after", "fraction", "meaning"):
        table.add_column(column, justify="left" if column in ("", "meaning") else "right")
    for metric in COUNTED_METRICS:
        change = row[metric.name]
        counts = f"{change['before']:,}", f"{change['after']:,}"
        table.add_row(metric.name, *counts, f"{change['fraction']:.4f}", metric.meaning)
    found = row["latency"]
    if found is not None:
        times = (f"{found['before_ms']:.3f}", f"{found['after_ms']:.3f}", f"{1 / found['speedup']:.4f}")
        table.add_row("latency", *times, METRICS["latency"].meaning)
    return table


def layer_table(rows: list[Row]) -> Table:
    """Layers with their channels and kernels, before and after."""
    table = Table(title="Layers", title_justify="left", box=None)
    for column in ("layer", "operator", "in", "out", "groups", "kernels"):
        table.add_column(column, justify="left" if column in ("layer", "operator") else "right", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["operator"], *(sizes(row[key]) for key in ("in", "out", "groups", "kernels")))
    return table


def product_table(rows: list[Row]) -> list[RenderableType]:
    """Products whose multiply-adds no kernels account for, before and after; nothing where there are none."""
    if not rows:
        return []
    table = Table(title="Multiply-adds beside the kernels", title_justify="left", box=None)
    for column in ("node", "operator", "multiply-adds"):
        table.add_column(column, justify="right" if column == "multiply-adds" else "left", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["operator"], sizes(row["macs"]))
    return [table]


def pin_table(rows: list[Row]) -> RenderableType:
    """What may not be removed, and what to do about it."""
    if not rows:
        return Text("Nothing is pinned.")
    table = Table(title="Pinned (may not be removed)", title_justify="left", box=None)
    for column in ("tensor", "channels", "kernels held", "reason", "what to do"):
        table.add_column(column, justify="right" if column in ("channels", "kernels held") else "left", overflow="fold")
    for row in rows:
        table.add_row(row["tensor"], str(row["channels"]), f"{row['kernels']:,}", row["reason"], row["advice"])
    return table

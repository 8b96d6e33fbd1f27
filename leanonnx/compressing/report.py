"""What is told of a model and of a compression: plain data for JSON, tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.analysis.cost import UNITS, Cost, cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.compressing.pipeline import Result
from leanonnx.compressing.remarks import changed, remarks
from leanonnx.errors import OptionError
from leanonnx.numeric.labels import Labels, Mask, projection, varied
from leanonnx.proof.deviation import Fidelity
from leanonnx.recovery.draft import Recovery
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import Comparison
from leanonnx.selection.limits import held_back
from leanonnx.words import counted, finite, metric_text, sizes

SCHEMA = 1
MEANING = {
    "kernels": "input-output channel pairs of Conv, ConvTranspose, Gemm and MatMul",
    "macs": "multiply-adds of one run at the input sizes shown",
    "params": "numbers stored as weights",
    "bytes": "size of the file with its external data",
    "latency": "median ms of one run in onnxruntime, measured in turns; fraction: median of the ratios",
}
Row = dict[str, Any]


def summary(result: Result) -> Row:
    """The JSON object of ``leanonnx compress``."""
    dag = result.dag
    return {
        "schema": SCHEMA,
        **_changes(result.before, result.after),
        "bytes": _change(*result.bytes),
        "proof": {
            "status": result.proof.status,
            "max_relative_error": result.proof.max_relative_error,
            "bound": result.proof.bound,
            "inputs": result.proof.inputs,
            "outputs": result.proof.outputs,
        },
        "pins": pins(dag, result.alive),
        "layers": layers(dag, result.alive),
        "latency": latency(result.latency, result.setting),
        "recovery": recovery(result.recovery),
        "blind": result.unseen and result.unseen.row(),
        "tidied": dict(result.tidied),
        "exact": None if result.exact is None else dict(result.exact),
        "inputs": input_sizes(dag),
        "seconds": dict(result.seconds),
        "warnings": list(result.warnings),
        "hints": list(result.hints),
    }


def latency(found: Comparison | None, setting: Setting) -> Row | None:
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


def comparison(found: Comparison) -> Row:
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
    """Deviation of each output, and the metric with labels where there are any."""
    outputs = {}
    for one in found.outputs:
        outputs[one.output] = {
            "relative_l2": finite(one.relative_l2),
            "psnr": finite(one.psnr),
            "top1": one.top1,
            "top5": one.top5,
        }
    metric = None
    if found.metric is not None:
        metric = {"name": found.metric, "better": found.better, "before": found.before, "after": found.after}
    return {"samples": found.samples, "outputs": outputs, "metric": metric}


def overview(dag: ChannelDag) -> Row:
    """The JSON object of ``leanonnx inspect``."""
    everything = dag.whole
    cost = cost_model(dag)(everything)
    return {
        "schema": SCHEMA,
        **{unit: getattr(cost, unit) for unit in UNITS},
        "bytes": dag.model.size,
        "channels": _channel_counts(dag),
        "inputs": input_sizes(dag),
        "layers": layers(dag, everything),
        "ties": ties(dag),
        "pins": pins(dag, everything),
    }


def input_sizes(dag: ChannelDag) -> dict[str, list[int]]:
    """Sizes of the graph inputs that multiply-adds and proofs refer to."""
    return {value.name: list(dag.shapes[value.name]) for value in dag.model.inputs}


def _changes(before: Cost, after: Cost) -> Row:
    return {unit: _change(getattr(before, unit), getattr(after, unit)) for unit in UNITS}


def _change(before: int, after: int) -> Row:
    return {"before": before, "after": after, "fraction": round(after / before, 6) if before else 1.0}


def _channel_counts(dag: ChannelDag) -> Row:
    pinned = dag.pinned
    return {"classes": int(pinned.size) - 1, "pinned": int(pinned.sum()) - 1}


def layers(dag: ChannelDag, alive: Mask) -> list[Row]:
    """Channels read and put out by each mixing node, before and after, with its kernels."""
    rows = []
    for node, mix in dag.mixes:
        proto = dag.model.proto.graph.node[node]
        kernels = int((alive[mix.targets].sum(1) * alive[mix.sources].sum(1)).sum())
        before = mix.sources.shape[0] * mix.sources.shape[1] * mix.targets.shape[1]
        rows.append(
            {
                "name": proto.name or proto.output[0],
                "operator": proto.op_type,
                "groups": [mix.sources.shape[0], int(alive[mix.targets].any(1).sum())],
                "in": _width(mix.sources, alive),
                "out": _width(mix.targets, alive),
                "kernels": [before * mix.counted, kernels * mix.counted],
                "macs": [before * mix.taps * mix.positions, kernels * mix.taps * mix.positions],
            }
        )
    return rows


def _width(labels: Labels, alive: Mask) -> list[int]:
    return [int(labels.size), int(alive[labels].sum())]


def pins(dag: ChannelDag, alive: Mask) -> list[Row]:
    """Pinned channels with the reason and the living kernels that touch them."""
    held = held_back(dag, cost_model(dag), alive, dag.pins, by=lambda pin: (pin.tensor, pin.reason))
    found: dict[tuple[str, str], Row] = {}
    for pin in dag.pins:
        row = {"tensor": pin.tensor, "channels": int(pin.labels.size), "reason": pin.reason, "advice": pin.advice}
        found.setdefault((pin.tensor, pin.reason), {**row, "kernels": held[pin.tensor, pin.reason]})
    return sorted(found.values(), key=lambda row: (-row["kernels"], row["tensor"]))


def ties(dag: ChannelDag) -> list[Row]:
    """Groups of mixing nodes whose output channels live and die together, with the number of classes."""
    owners: dict[int, set[int]] = {}
    for node, mix in dag.mixes:
        for found in np.unique(dag.classes[mix.targets]):
            owners.setdefault(int(found), set()).add(node)
    groups: dict[tuple[int, ...], int] = {}
    for nodes in owners.values():
        if len(nodes) > 1:
            groups[tuple(sorted(nodes))] = groups.get(tuple(sorted(nodes)), 0) + 1
    names = [node.name or node.output[0] for node in dag.model.proto.graph.node]
    return [{"layers": [names[k] for k in nodes], "classes": count} for nodes, count in sorted(groups.items())]


def why(dag: ChannelDag, tensor: str, channel: int | None = None) -> Row:
    """Where a tensor's channels lie, what they are tied to, and what pins them.

    Raises:
        OptionError: no tensor of that name carries channels, or it has fewer.
    """
    if tensor not in dag.labels:
        said = tensor if channel is None else f"{tensor}:{channel}"
        raise OptionError(f"--why {said}: no tensor named '{tensor}' carries channels; see `leanonnx inspect`")
    labels = dag.labels[tensor]
    axes = varied(labels)
    row: Row = {
        "schema": SCHEMA,
        "tensor": tensor,
        "shape": list(dag.shapes.get(tensor, ())),
        "channel_axes": list(axes),
    }
    chosen = np.unique(labels)
    if channel is not None:
        line = labels if not axes else np.moveaxis(labels, axes[0], 0)
        if not 0 <= channel < (line.shape[0] if axes else 1):
            raise OptionError(f"--why {tensor}:{channel}: '{tensor}' has {labels.size} channels, counted from 0")
        chosen = np.unique(line[channel] if axes else labels)
        row["channel"] = channel
    members = np.isin(dag.classes, dag.classes[chosen])
    pinned = [pin for pin in dag.pins if members[pin.labels].any()]
    row["channels"] = int(np.unique(dag.classes[chosen]).size)
    row["removable"] = int((~dag.pinned[np.unique(dag.classes[chosen])]).sum())
    row["pins"] = [{"tensor": p.tensor, "reason": p.reason, "advice": p.advice} for p in _once(pinned)]
    row["tied"] = _tied_tensors(dag, members, tensor)
    row["read_by"] = [n.name or n.output[0] for n in dag.model.proto.graph.node if tensor in n.input]
    return row


def _once(found: Iterable[Any]) -> list[Any]:
    return list({(pin.tensor, pin.reason): pin for pin in found}.values())


def _tied_tensors(dag: ChannelDag, members: Mask, tensor: str) -> list[Row]:
    """Other tensors that hold channels of the same classes, by the index on their first channel axis."""
    rows = []
    for name, labels in dag.labels.items():
        mask = members[labels]
        if name != tensor and mask.any() and varied(labels):
            index = np.flatnonzero(projection(mask, varied(labels)[0]))
            rows.append({"tensor": name, "channels": int(index.size), "first": index[:8].tolist()})
    return rows


def result_tables(row: Row, source: str, target: str) -> RenderableType:
    """The summary of a compression for people."""
    head = Text(f"{source} → {target}", style="bold")
    error, against = row["proof"]["max_relative_error"], "original" if row["exact"] else "masked original"
    proof = Text(
        f"Proof {row['proof']['status'].upper()}: {'before its weights were changed, ' if changed(row) else ''}"
        f"equal to the {against} within {error:.1e} "
        f"(bound {row['proof']['bound']:.0e}) on {row['proof']['inputs']} inputs",
        style="green" if row["proof"]["status"] == "passed" else "red",
    )
    notes = warned(row) + [Text(f"Hint: {text}") for text in row["hints"]] + [Text(line) for line in remarks(row)]
    return Group(
        head,
        *notes,
        _cost_table(row),
        _layer_table(row["layers"]),
        _pin_table(row["pins"]),
        proof,
        *_deviation_parts(row["recovery"]),
        _latency_text(row["latency"]),
    )


def warned(row: Row) -> list[Text]:
    """The warnings of a JSON object."""
    return [Text(f"Warning: {text}", style="yellow") for text in row["warnings"]]


def _deviation_parts(row: Row | None) -> list[RenderableType]:
    """How near the result comes to the original, output by output."""
    if row is None:
        return []
    columns = {"relative_l2": "relative L2", "psnr": "PSNR (dB)", "top1": "top-1 agreement", "top5": "top-5"}
    table = Table(box=None)
    table.add_column("output")
    for text in columns.values():
        table.add_column(text, justify="right")
    for name, now in row["deviation"]["outputs"].items():
        first = row["removed"]["outputs"][name]
        table.add_row(name, *(_moved(first[key], now[key], row["kept"]) for key in columns))
    held = "held-out " if row["held_out"] else ""
    samples = counted(row["deviation"]["samples"], f"{held}sample")
    head = f"Deviation from the original on {samples}" + (", before → after recovery" if row["kept"] else "")
    parts: list[RenderableType] = [Text(head), table]
    metric = row["deviation"]["metric"]
    if metric:
        parts.append(Text(metric_text(metric)))
    return parts


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


def overview_tables(row: Row, source: str) -> RenderableType:
    """``leanonnx inspect`` for people."""
    table = Table(title=None, box=None)
    for column in ("", "", "meaning"):
        table.add_column(column, justify="right" if column == "" else "left")
    for unit in (*UNITS, "bytes"):
        table.add_row(unit, f"{row[unit]:,}", MEANING[unit])
    channels = row["channels"]
    note = Text(
        f"{channels['classes']} independent channels, {channels['pinned']} of them pinned; inputs {row['inputs']}"
    )
    return Group(
        Text(source, style="bold"),
        table,
        note,
        _layer_table(row["layers"]),
        _tie_table(row["ties"]),
        _pin_table(row["pins"]),
    )


def why_text(row: Row) -> RenderableType:
    """``leanonnx inspect --why`` for people."""
    lines = [f"'{row['tensor']}' {row['shape']}: {row['channels']} channels on axes {row['channel_axes']}"]
    lines += [f"  {row['removable']} of them may be removed"]
    lines += [f"  pinned: {pin['reason']} ({pin['advice']})" for pin in row["pins"]]
    lines += [f"  lives and dies with {t['channels']} channels of '{t['tensor']}'" for t in row["tied"][:20]]
    lines += [f"  … and {len(row['tied']) - 20} more tensors"] if len(row["tied"]) > 20 else []
    lines += [f"  read by '{name}'" for name in row["read_by"]]
    return Text("\n".join(lines))


def _cost_table(row: Row) -> Table:
    table = Table(box=None)
    for column in ("", "before", "after", "fraction", "meaning"):
        table.add_column(column, justify="left" if column in ("", "meaning") else "right")
    for unit in (*UNITS, "bytes"):
        change = row[unit]
        table.add_row(unit, f"{change['before']:,}", f"{change['after']:,}", f"{change['fraction']:.4f}", MEANING[unit])
    found = row["latency"]
    if found is not None:
        times = (f"{found['before_ms']:.3f}", f"{found['after_ms']:.3f}", f"{1 / found['speedup']:.4f}")
        table.add_row("latency", *times, MEANING["latency"])
    return table


def _layer_table(rows: list[Row]) -> Table:
    table = Table(title="Layers", title_justify="left", box=None)
    for column in ("layer", "operator", "in", "out", "groups", "kernels"):
        table.add_column(column, justify="left" if column in ("layer", "operator") else "right", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["operator"], *(sizes(row[key]) for key in ("in", "out", "groups", "kernels")))
    return table


def _tie_table(rows: list[Row]) -> RenderableType:
    if not rows:
        return Text("No layers are tied.")
    table = Table(title="Tied layers (their channels live and die together)", title_justify="left", box=None)
    table.add_column("channels", justify="right")
    table.add_column("layers", overflow="fold")
    for row in rows:
        table.add_row(str(row["classes"]), ", ".join(row["layers"]))
    return table


def _pin_table(rows: list[Row]) -> RenderableType:
    if not rows:
        return Text("Nothing is pinned.")
    table = Table(title="Pinned (may not be removed)", title_justify="left", box=None)
    for column in ("tensor", "channels", "kernels held", "reason", "what to do"):
        table.add_column(column, justify="right" if column in ("channels", "kernels held") else "left", overflow="fold")
    for row in rows:
        table.add_row(row["tensor"], str(row["channels"]), f"{row['kernels']:,}", row["reason"], row["advice"])
    return table

"""What is told of a network as it is: plain data for JSON, tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.formatting import counted
from leanonnx.numeric.channel_ids import Mask, projection, varied
from leanonnx.reporting.remarks import folded, uncounted
from leanonnx.reporting.report import (
    SCHEMA,
    Row,
    input_sizes,
    layer_table,
    layers,
    pin_table,
    pins,
    product_rows,
    product_table,
    uncounted_nodes,
)
from leanonnx.selection.metrics import COUNTED_METRICS
from leanonnx.spelling import option, verb


def overview(dag: ChannelDag) -> Row:
    """The JSON object of ``leanonnx inspect``."""
    everything = dag.whole
    cost = cost_model(dag)(everything)
    return {
        "schema": SCHEMA,
        **{metric.name: metric.count(cost) for metric in COUNTED_METRICS},
        "channels": _channel_counts(dag),
        "inputs": input_sizes(dag),
        "layers": layers(dag, everything),
        "products": product_rows(dag, everything),
        "folded": list(dag.model.folded),
        "uncounted": uncounted_nodes(dag),
        "ties": ties(dag),
        "pins": pins(dag, everything),
    }


def _channel_counts(dag: ChannelDag) -> Row:
    pinned = dag.pinned
    return {"classes": int(pinned.size) - 1, "pinned": int(pinned.sum()) - 1}


def ties(dag: ChannelDag) -> list[Row]:
    """Groups of mixing nodes whose output channels live and die together, with the number of classes."""
    owners: dict[int, set[int]] = {}
    for node, mix in dag.kernel_blocks:
        for found in np.unique(dag.groups[mix.destinations]):
            owners.setdefault(int(found), set()).add(node)
    tied_layers: dict[tuple[int, ...], int] = {}
    for nodes in owners.values():
        if len(nodes) > 1:
            tied_layers[tuple(sorted(nodes))] = tied_layers.get(tuple(sorted(nodes)), 0) + 1
    names = [node.name or node.output[0] for node in dag.model.proto.graph.node]
    return [{"layers": [names[k] for k in nodes], "classes": count} for nodes, count in sorted(tied_layers.items())]


def why(dag: ChannelDag, tensor: str, channel: int | None = None) -> Row:
    """Where a tensor's channels lie, what they are tied to, and what pins them.

    Raises:
        OptionError: no tensor of that name carries channels, or it has fewer.
    """
    if tensor not in dag.channel_ids:
        said = tensor if channel is None else f"{tensor}:{channel}"
        raise OptionError(
            f"{option('why', said)}: no tensor named '{tensor}' carries channels; see `{verb('inspect')}`"
        )
    channel_ids = dag.channel_ids[tensor]
    axes = varied(channel_ids)
    row: Row = {
        "schema": SCHEMA,
        "tensor": tensor,
        "shape": list(dag.shapes.get(tensor, ())),
        "channel_axes": list(axes),
    }
    chosen = np.unique(channel_ids)
    if channel is not None:
        line = channel_ids if not axes else np.moveaxis(channel_ids, axes[0], 0)
        count = line.shape[0] if axes else 1
        if not 0 <= channel < count:
            has = f"'{tensor}' has {counted(count, 'channel')}"
            raise OptionError(f"{option('why', f'{tensor}:{channel}')}: {has}; give one from 0 to {count - 1}")
        chosen = np.unique(line[channel] if axes else channel_ids)
        row["channel"] = channel
    members = np.isin(dag.groups, dag.groups[chosen])
    pinned = [pin for pin in dag.pins if members[pin.channel_ids].any()]
    row["channels"] = int(np.unique(dag.groups[chosen]).size)
    row["removable"] = int((~dag.pinned[np.unique(dag.groups[chosen])]).sum())
    row["pins"] = [{"tensor": p.tensor, "reason": p.reason, "advice": p.advice} for p in _once(pinned)]
    row["tied"] = _tied_tensors(dag, members, tensor)
    row["read_by"] = [n.name or n.output[0] for n in dag.model.proto.graph.node if tensor in n.input]
    return row


def _once(found: Iterable[Any]) -> list[Any]:
    return list({(pin.tensor, pin.reason): pin for pin in found}.values())


def _tied_tensors(dag: ChannelDag, members: Mask, tensor: str) -> list[Row]:
    """Other tensors that hold channels of the same classes, by the index on their first channel axis."""
    rows = []
    for name, channel_ids in dag.channel_ids.items():
        mask = members[channel_ids]
        if name != tensor and mask.any() and varied(channel_ids):
            index = np.flatnonzero(projection(mask, varied(channel_ids)[0]))
            rows.append({"tensor": name, "channels": int(index.size), "first": index[:8].tolist()})
    return rows


def overview_tables(row: Row, source: str) -> RenderableType:
    """``leanonnx inspect`` for people."""
    table = Table(title=None, box=None)
    for column in ("", "", "meaning"):
        table.add_column(column, justify="right" if column == "" else "left")
    for metric in COUNTED_METRICS:
        table.add_row(metric.name, f"{row[metric.name]:,}", metric.meaning)
    channels = row["channels"]
    note = Text(
        f"{channels['classes']} independent channels, {channels['pinned']} of them pinned; inputs {row['inputs']}"
    )
    notes = [Text(line) for line in folded(row["folded"]) + uncounted(row["uncounted"])]
    return Group(
        Text(source, style="bold"),
        table,
        note,
        *notes,
        layer_table(row["layers"]),
        *product_table(row["products"]),
        _tie_table(row["ties"]),
        pin_table(row["pins"]),
    )


def why_text(row: Row) -> RenderableType:
    """``leanonnx inspect --why`` for people."""
    lines = [f"'{row['tensor']}' {row['shape']}: {counted(row['channels'], 'channel')} on axes {row['channel_axes']}"]
    lines += [f"  {row['removable']} of them may be removed"]
    lines += [f"  pinned: {pin['reason']} ({pin['advice']})" for pin in row["pins"]]
    lines += [f"  lives and dies with {counted(t['channels'], 'channel')} of '{t['tensor']}'" for t in row["tied"][:20]]
    lines += [f"  … and {len(row['tied']) - 20} more tensors"] if len(row["tied"]) > 20 else []
    lines += [f"  read by '{name}'" for name in row["read_by"]]
    return Text("\n".join(lines))


def _tie_table(rows: list[Row]) -> RenderableType:
    if not rows:
        return Text("No layers are tied.")
    table = Table(title="Tied layers (their channels live and die together)", title_justify="left", box=None)
    table.add_column("channels", justify="right")
    table.add_column("layers", overflow="fold")
    for row in rows:
        table.add_row(str(row["classes"]), ", ".join(row["layers"]))
    return table

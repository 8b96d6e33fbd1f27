"""Build the reports of ``leanonnx inspect``: of a whole network, and of one tensor's channels."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches

import numpy as np

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.formatting import count_text
from leanonnx.graph.nodes import name_of
from leanonnx.numeric.channel_ids import ChannelIds, Mask, any_along, varied_axes
from leanonnx.reporting.builders import input_shapes, layer_rows, pin_rows, product_rows, uncounted_nodes
from leanonnx.reporting.costs import cost_counts
from leanonnx.reporting.reports import ChannelCounts, ChannelReport, NetworkReport, PinReason, TiedTensor
from leanonnx.reporting.rows import TieRow
from leanonnx.rules.call import Pin
from leanonnx.spelling import option, verb

MAX_LISTED_CHANNELS = 8
"""Indices of a tied tensor's channels that are listed."""


def network_report(dag: ChannelDag) -> NetworkReport:
    """The report of ``leanonnx inspect``."""
    everything = dag.all_alive
    return NetworkReport(
        costs=cost_counts(cost_model(dag)(everything)),
        channels=ChannelCounts(int(dag.pinned_groups.size) - 1, int(dag.pinned_groups.sum()) - 1),
        inputs=input_shapes(dag),
        layers=layer_rows(dag, everything),
        products=product_rows(dag, everything),
        folded=tuple(dag.model.folded),
        uncounted=uncounted_nodes(dag),
        ties=tie_rows(dag),
        pins=pin_rows(dag, everything),
    )


def tie_rows(dag: ChannelDag) -> tuple[TieRow, ...]:
    """Sets of layers with common groups of output channels, and the number of these groups."""
    layers: dict[int, set[int]] = {}
    for node, block in dag.kernel_blocks:
        for group in np.unique(dag.groups[block.destinations]).tolist():
            layers.setdefault(group, set()).add(node)
    counts = Counter(tuple(sorted(nodes)) for nodes in layers.values() if len(nodes) > 1)
    names = [name_of(node) for node in dag.model.proto.graph.node]
    return tuple(TieRow(tuple(names[k] for k in nodes), count) for nodes, count in sorted(counts.items()))


def carries_channels(dag: ChannelDag, name: str) -> bool:
    """True if a tensor of that name carries channels, or a layer of that name outputs one."""
    return _tensor_named(dag, name) is not None


def _tensor_named(dag: ChannelDag, name: str) -> str | None:
    """The tensor of a name, or the first output with channels of the layer of that name; None if there is neither."""
    outputs = (tensor for node in dag.model.proto.graph.node if node.name == name for tensor in node.output)
    return next((tensor for tensor in (name, *outputs) if tensor in dag.channel_ids), None)


def channel_report(dag: ChannelDag, name: str, channel: int | None = None) -> ChannelReport:
    """The channels of a tensor, or one of them: their axes, the tensors that they are tied to, and their pins.

    Args:
        dag: the network.
        name: of the tensor, or of the layer that outputs it.
        channel: the index of one channel; None for all.

    Raises:
        OptionError: no tensor and no layer of that name carries channels, or it has fewer.
    """
    tensor = _tensor_named(dag, name)
    if tensor is None:
        given = name if channel is None else f"{name}:{channel}"
        near = get_close_matches(name, (*dag.channel_ids, *(node.name for node in dag.model.proto.graph.node)), 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise OptionError(
            f"{option('why', given)}: no tensor and no layer named '{name}' carries channels{hint}; "
            f"see `{verb('inspect')}`"
        )
    channel_ids = dag.channel_ids[tensor]
    groups = np.unique(dag.groups[_select(channel_ids, tensor, channel)])
    members = np.isin(dag.groups, groups)
    pins = {(p.tensor, p.reason): PinReason(p.tensor, p.reason, p.advice) for p in _pins_on(dag, members)}
    return ChannelReport(
        tensor=tensor,
        shape=tuple(dag.shapes.get(tensor, ())),
        channel_axes=tuple(varied_axes(channel_ids)),
        channel=channel,
        channels=int(groups.size),
        removable=int((~dag.pinned_groups[groups]).sum()),
        pins=tuple(pins.values()),
        tied=_tied_tensors(dag, members, tensor),
        consumers=tuple(name_of(node) for node in dag.model.proto.graph.node if tensor in node.input),
    )


def _select(channel_ids: ChannelIds, tensor: str, channel: int | None) -> ChannelIds:
    """The ids of all channels of a tensor, or of one of them."""
    if channel is None:
        return channel_ids
    axes = varied_axes(channel_ids)
    count = channel_ids.shape[axes[0]] if axes else 1
    if not 0 <= channel < count:
        has = f"'{tensor}' has {count_text(count, 'channel')}"
        raise OptionError(f"{option('why', f'{tensor}:{channel}')}: {has}; give one from 0 to {count - 1}")
    return np.take(channel_ids, channel, axes[0]) if axes else channel_ids


def _pins_on(dag: ChannelDag, members: Mask) -> list[Pin]:
    """The pins of any of some channels [channels]."""
    return [pin for pin in dag.pins if members[pin.channel_ids].any()]


def _tied_tensors(dag: ChannelDag, members: Mask, tensor: str) -> tuple[TiedTensor, ...]:
    """Other tensors that hold any of some channels, with the indices of these on their first channel axis."""
    rows = []
    for name, channel_ids in dag.channel_ids.items():
        mask = members[channel_ids]
        if name != tensor and mask.any() and varied_axes(channel_ids):
            index = np.flatnonzero(any_along(mask, varied_axes(channel_ids)[0]))
            rows.append(TiedTensor(name, int(index.size), tuple(index[:MAX_LISTED_CHANNELS].tolist())))
    return tuple(rows)

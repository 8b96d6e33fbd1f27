"""Limits of pruning: the pins, and the channels that are kept or removed together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.cost import CostModel
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import node_title
from leanonnx.numeric.channel_ids import Mask
from leanonnx.rules.call import Pin

Key = TypeVar("Key", bound=Hashable)
MAX_NAMED = 3
"""Pins, and ties, that a message names."""


def limiting_factors(
    dag: ChannelDag, cost: CostModel, alive: Mask, extra_pins: tuple[Pin, ...], macs: bool = False
) -> tuple[str, ...]:
    """The pins (the model's and the extra ones) and ties that keep most of a keep set that cannot shrink further.

    They are counted in kernels or, with ``macs``, in multiply-adds.
    """
    noun = "multiply-adds" if macs else "kernels"
    counts = kernels_held_by(dag, cost, alive, (*dag.pins, *extra_pins), lambda pin: (pin.reason, pin.advice), macs)
    texts = [(count, f"{count} {noun}: {key[0]} ({key[1]})") for key, count in counts.items() if count]
    ranked = sorted(texts + _unprunable(dag, cost, noun, macs), key=lambda item: -item[0])
    return (*(text for _, text in ranked[:MAX_NAMED]), *_tie_texts(dag, cost, alive))


def _unprunable(dag: ChannelDag, cost: CostModel, noun: str, macs: bool) -> list[tuple[int, str]]:
    """Nodes that no channel removal reaches, with their kernels or multiply-adds."""
    counts: dict[int, int] = {}
    for node, mix in dag.kernel_blocks:
        if mix.input_channel_ids is None and any(mix is counted for counted in cost.kernel_blocks):
            each = mix.taps * mix.positions if macs else mix.is_counted
            counts[node] = counts.get(node, 0) + mix.sources.size * mix.destinations.shape[1] * each
    pinned = dag.pinned_groups
    for product in cost.products if macs else ():
        if all(pinned[dag.groups[factor]].all() for factor in product.factors):
            counts[product.node] = counts.get(product.node, 0) + product.macs
    nodes = dag.model.proto.graph.node
    return [(count, f"{count} {noun}: {node_title(nodes[k])} cannot be pruned") for k, count in counts.items() if count]


def kernels_held_by(
    dag: ChannelDag,
    cost: CostModel,
    alive: Mask,
    pins: Iterable[Pin],
    by: Callable[[Pin], Key],
    macs: bool = False,
) -> dict[Key, int]:
    """Kernels (with ``macs``, multiply-adds) that pins keep, for pins grouped ``by`` a key.

    They touch a pinned channel, a channel tied to it, or one that a pinned concat slot reads.
    """
    pins_by_key: dict[Key, list[Pin]] = {}
    for pin in pins:
        pins_by_key.setdefault(by(pin), []).append(pin)
    known: dict[bytes, int] = {}
    counts: dict[Key, int] = {}
    for key, members in pins_by_key.items():
        groups = _kept_groups(dag, np.concatenate([dag.groups[pin.channel_ids].reshape(-1) for pin in members]))
        if groups.tobytes() not in known:
            known[groups.tobytes()] = _touching(cost, alive, groups[dag.groups], macs)
        counts[key] = known[groups.tobytes()]
    return counts


def _kept_groups(dag: ChannelDag, pinned: NDArray[np.int64]) -> Mask:
    """The groups that are kept because these are [groups]; not the group that is always kept."""
    kept = np.zeros(int(dag.groups.max()) + 1, bool)
    kept[pinned] = True
    kept[dag.groups[0]] = False
    count = -1
    while count != (count := int(kept.sum())):
        for _, (channels, readers) in reversed(dag.concat_slots):
            kept[dag.groups[channels[kept[dag.groups[readers]]]]] = True
        kept[dag.groups[0]] = False
    return kept


def _touching(cost: CostModel, alive: Mask, touched: Mask, macs: bool) -> int:
    """Kept kernels, or multiply-adds, that touch one of the channels in a mask [channels]."""
    count = 0
    for mix in cost.kernel_blocks:
        rows, columns = alive[mix.destinations], alive[mix.sources]
        free_rows, free_columns = rows & ~touched[mix.destinations], columns & ~touched[mix.sources]
        held = rows.sum(1) * columns.sum(1) - free_rows.sum(1) * free_columns.sum(1)
        count += int(held.sum()) * (mix.taps * mix.positions if macs else mix.is_counted)
    if macs:
        count += sum(one.remaining(alive) - one.remaining(alive & ~touched) for one in cost.products)
    return count


def _tie_texts(dag: ChannelDag, cost: CostModel, alive: Mask) -> list[str]:
    """The groups without a pin that keep most kernels and hold more than one channel of a tensor, in words."""
    held = _kernels_of_groups(dag, cost, alive)
    held[dag.pinned_groups] = 0
    texts = []
    for group in np.argsort(-held, kind="stable")[:MAX_NAMED]:
        tensor, count, size = _widest(dag, int(group))
        text = f"{count} of the {size} channels of '{tensor}' can only be removed together{_grouping(dag, int(group))}"
        if held[group] and count > 1 and text not in texts:
            texts.append(text)
    return texts


def _kernels_of_groups(dag: ChannelDag, cost: CostModel, alive: Mask) -> NDArray[np.int64]:
    """Kept kernels that touch each group [groups]."""
    held = np.zeros(int(dag.groups.max()) + 1, np.int64)
    for mix in cost.kernel_blocks:
        rows, columns = alive[mix.destinations], alive[mix.sources]
        if not mix.is_counted:
            continue
        np.add.at(held, dag.groups[mix.destinations], rows * columns.sum(1, keepdims=True))
        np.add.at(held, dag.groups[mix.sources], columns * rows.sum(1, keepdims=True))
    return held


def _widest(dag: ChannelDag, group: int) -> tuple[str, int, int]:
    """The tensor that holds most channels of a group: its name, their number, and its number of channels."""
    counts = (
        (name, int((dag.groups[channel_ids] == group).sum()), channel_ids.size)
        for name, channel_ids in dag.channel_ids.items()
    )
    return max(counts, key=lambda item: item[1])


def _grouping(dag: ChannelDag, group: int) -> str:
    """The grouped operator that ties a group, in words; empty if there is none."""
    for node, mix in dag.kernel_blocks:
        if 1 < mix.destinations.shape[0] < mix.destinations.size and (dag.groups[mix.destinations] == group).any():
            proto = dag.model.proto.graph.node[node]
            return f" (whole groups of {proto.op_type} '{proto.name or proto.output[0]}')"
    return ""

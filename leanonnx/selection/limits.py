"""What keeps a network from getting smaller: pins, and channels that live and die together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.cost import CostModel
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import title
from leanonnx.numeric.channel_ids import Mask
from leanonnx.rules.call import Pin

Key = TypeVar("Key", bound=Hashable)
MACS = "multiply-adds"
NAMES = {"kernels": "kernels", "params": "kernels", "latency": "kernels", "macs": MACS}
"""What is counted of that which holds up a budget, by its unit."""
NAMED = 3
"""How many of each kind a message names."""


def what_holds(
    dag: ChannelDag, cost: CostModel, alive: Mask, asked: tuple[Pin, ...], unit: str = "kernels"
) -> tuple[str, ...]:
    """The pins (the model's and those asked for) and ties that hold most of a keep set that cannot shrink further.

    They are measured in multiply-adds where ``unit`` is 'macs', else in kernels.
    """
    pins = (*dag.pins, *asked)
    found = held_back(dag, cost, alive, pins, lambda pin: (pin.reason, pin.advice), unit)
    held = [(count, f"{count} {NAMES[unit]}: {key[0]} ({key[1]})") for key, count in found.items() if count]
    ranked = sorted(held + _untouchable(dag, cost, NAMES[unit]), key=lambda item: -item[0])
    return (*(text for _, text in ranked[:NAMED]), *_tied(dag, cost, alive))


def _untouchable(dag: ChannelDag, cost: CostModel, name: str) -> list[tuple[int, str]]:
    """Products that no channel removal can reach, with their kernels or multiply-adds."""
    counts: dict[int, int] = {}
    for node, mix in dag.kernel_blocks:
        if mix.inward is None and any(mix is counted for counted in cost.mixes):
            each = mix.taps * mix.positions if name == MACS else mix.counted
            counts[node] = counts.get(node, 0) + mix.sources.size * mix.destinations.shape[1] * each
    pinned = dag.pinned
    for product in cost.products if name == MACS else ():
        if all(pinned[dag.groups[factor]].all() for factor in product.factors):
            counts[product.node] = counts.get(product.node, 0) + product.macs
    nodes = dag.model.proto.graph.node
    return [(count, f"{count} {name}: {title(nodes[k])} cannot be pruned") for k, count in counts.items() if count]


def held_back(
    dag: ChannelDag,
    cost: CostModel,
    alive: Mask,
    pins: Iterable[Pin],
    by: Callable[[Pin], Key],
    unit: str = "kernels",
) -> dict[Key, int]:
    """For pins grouped ``by`` a key: the living kernels that touch a pinned channel, or one that lives because of it.

    Those are the channels tied to it, and what a pinned reader reads.  With the unit 'macs', multiply-adds.
    """
    pins_by_key: dict[Key, list[Pin]] = {}
    for pin in pins:
        pins_by_key.setdefault(by(pin), []).append(pin)
    known: dict[bytes, int] = {}
    found: dict[Key, int] = {}
    for key, members in pins_by_key.items():
        groups = _reached(dag, np.concatenate([dag.groups[pin.channel_ids].reshape(-1) for pin in members]))
        if groups.tobytes() not in known:
            known[groups.tobytes()] = _touching(cost, alive, groups[dag.groups], NAMES[unit] == MACS)
        found[key] = known[groups.tobytes()]
    return found


def _reached(dag: ChannelDag, pinned: NDArray[np.int64]) -> Mask:
    """The classes that live because these do [classes]; not what lives always."""
    found = np.zeros(int(dag.groups.max()) + 1, bool)
    found[pinned] = True
    found[dag.groups[0]] = False
    count = -1
    while count != (count := int(found.sum())):
        for _, (channels, readers) in reversed(dag.concat_slots):
            found[dag.groups[channels[found[dag.groups[readers]]]]] = True
        found[dag.groups[0]] = False
    return found


def _touching(cost: CostModel, alive: Mask, touched: Mask, macs: bool) -> int:
    """Living kernels, or multiply-adds, that touch a channel [labels]."""
    count = 0
    for mix in cost.mixes:
        rows, columns = alive[mix.destinations], alive[mix.sources]
        free_rows, free_columns = rows & ~touched[mix.destinations], columns & ~touched[mix.sources]
        held = rows.sum(1) * columns.sum(1) - free_rows.sum(1) * free_columns.sum(1)
        count += int(held.sum()) * (mix.taps * mix.positions if macs else mix.counted)
    if macs:
        count += sum(one.surviving(alive) - one.surviving(alive & ~touched) for one in cost.products)
    return count


def _tied(dag: ChannelDag, cost: CostModel, alive: Mask) -> list[str]:
    """Classes without a pin that hold many kernels and more than one channel of a tensor."""
    held = _kernels_of_classes(dag, cost, alive)
    held[dag.pinned] = 0
    found = []
    for group in np.argsort(-held, kind="stable")[:NAMED]:
        tensor, count, size = _widest(dag, int(group))
        text = f"{count} of the {size} channels of '{tensor}' live and die together{_grouping(dag, int(group))}"
        if held[group] and count > 1 and text not in found:
            found.append(text)
    return found


def _kernels_of_classes(dag: ChannelDag, cost: CostModel, alive: Mask) -> NDArray[np.int64]:
    """Living kernels that touch each class [classes]."""
    held = np.zeros(int(dag.groups.max()) + 1, np.int64)
    for mix in cost.mixes:
        rows, columns = alive[mix.destinations], alive[mix.sources]
        if not mix.counted:
            continue
        np.add.at(held, dag.groups[mix.destinations], rows * columns.sum(1, keepdims=True))
        np.add.at(held, dag.groups[mix.sources], columns * rows.sum(1, keepdims=True))
    return held


def _widest(dag: ChannelDag, group: int) -> tuple[str, int, int]:
    """The tensor that holds most channels of a class: its name, how many, and how many it has."""
    counts = (
        (name, int((dag.groups[channel_ids] == group).sum()), channel_ids.size)
        for name, channel_ids in dag.channel_ids.items()
    )
    return max(counts, key=lambda item: item[1])


def _grouping(dag: ChannelDag, group: int) -> str:
    """The grouped operator that ties a class, if there is one."""
    for node, mix in dag.kernel_blocks:
        if 1 < mix.destinations.shape[0] < mix.destinations.size and (dag.groups[mix.destinations] == group).any():
            proto = dag.model.proto.graph.node[node]
            return f" (whole groups of {proto.op_type} '{proto.name or proto.output[0]}')"
    return ""

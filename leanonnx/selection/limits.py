"""What keeps a network from getting smaller: pins, and channels that live and die together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.cost import CostModel
from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.labels import Mask
from leanonnx.rules.call import Pin

Key = TypeVar("Key", bound=Hashable)
NAMED = 3
"""How many of each kind a message names."""


def what_holds(dag: ChannelDag, cost: CostModel, alive: Mask, asked: tuple[Pin, ...]) -> tuple[str, ...]:
    """The pins (the model's and those asked for) and ties that hold most of a keep set that cannot shrink further."""
    pins = (*dag.pins, *asked)
    found = held_back(dag, cost, alive, pins, by=lambda pin: (pin.reason, pin.advice))
    held = [(kernels, f"{kernels} kernels: {key[0]} ({key[1]})") for key, kernels in found.items() if kernels]
    ranked = sorted(held + _untouchable(dag, cost), key=lambda item: -item[0])
    return (*(text for _, text in ranked[:NAMED]), *_tied(dag, cost, alive))


def _untouchable(dag: ChannelDag, cost: CostModel) -> list[tuple[int, str]]:
    """Products whose kernels no channel removal can reach, with their number."""
    found = []
    for node, mix in dag.mixes:
        if mix.inward is None and mix.counted and any(mix is counted for counted in cost.mixes):
            proto = dag.model.proto.graph.node[node]
            kernels = mix.sources.size * mix.targets.shape[1]
            text = f"{kernels} kernels: {proto.op_type} '{proto.name or proto.output[0]}' cannot be pruned"
            found.append((kernels, text))
    return found


def held_back(
    dag: ChannelDag, cost: CostModel, alive: Mask, pins: Iterable[Pin], by: Callable[[Pin], Key]
) -> dict[Key, int]:
    """For pins grouped ``by`` a key: the living kernels that touch a pinned channel or one tied to it."""
    groups: dict[Key, list[Pin]] = {}
    for pin in pins:
        groups.setdefault(by(pin), []).append(pin)
    known: dict[bytes, int] = {}
    found: dict[Key, int] = {}
    for key, members in groups.items():
        classes = np.unique(np.concatenate([dag.classes[pin.labels] for pin in members]))
        classes = classes[classes != dag.classes[0]]
        if classes.tobytes() not in known:
            known[classes.tobytes()] = _touching(dag, cost, alive, classes)
        found[key] = known[classes.tobytes()]
    return found


def _touching(dag: ChannelDag, cost: CostModel, alive: Mask, classes: NDArray[np.int64]) -> int:
    """Living kernels that touch a channel of these classes."""
    members = np.zeros(int(dag.classes.max()) + 1, bool)
    members[classes] = True
    touched = members[dag.classes]
    count = 0
    for mix in cost.mixes:
        rows, columns = alive[mix.targets], alive[mix.sources]
        free_rows, free_columns = rows & ~touched[mix.targets], columns & ~touched[mix.sources]
        held = rows.sum(1) * columns.sum(1) - free_rows.sum(1) * free_columns.sum(1)
        count += int(held.sum()) * mix.counted
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
    held = np.zeros(int(dag.classes.max()) + 1, np.int64)
    for mix in cost.mixes:
        rows, columns = alive[mix.targets], alive[mix.sources]
        if not mix.counted:
            continue
        np.add.at(held, dag.classes[mix.targets], rows * columns.sum(1, keepdims=True))
        np.add.at(held, dag.classes[mix.sources], columns * rows.sum(1, keepdims=True))
    return held


def _widest(dag: ChannelDag, group: int) -> tuple[str, int, int]:
    """The tensor that holds most channels of a class: its name, how many, and how many it has."""
    counts = ((name, int((dag.classes[labels] == group).sum()), labels.size) for name, labels in dag.labels.items())
    return max(counts, key=lambda item: item[1])


def _grouping(dag: ChannelDag, group: int) -> str:
    """The grouped operator that ties a class, if there is one."""
    for node, mix in dag.mixes:
        if 1 < mix.targets.shape[0] < mix.targets.size and (dag.classes[mix.targets] == group).any():
            proto = dag.model.proto.graph.node[node]
            return f" (whole groups of {proto.op_type} '{proto.name or proto.output[0]}')"
    return ""

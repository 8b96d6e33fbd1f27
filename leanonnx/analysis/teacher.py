"""The teacher of recovery: the network that a result is fitted to, if that is not the network that is pruned.

A network from which blocks were cut, or one that was pruned elsewhere, is fitted to what it came from.  Both have
tensors of the same names; ``RecoveryTeacher`` says which of them mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured_names
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import ChannelIds


@dataclass(frozen=True, kw_only=True)
class RecoveryTeacher:
    """A network whose activations and outputs are the targets of recovery.

    ``shared``: tensors that both networks compute; ``unlike``: tensors of the network that is pruned which the teacher
    does not compute from the same inputs with the same constants; ``channels``: (axis, positions) in the teacher of the
    channels of a shared tensor, for those that have more channels there.
    """

    model: Model
    shared: frozenset[str]
    unlike: frozenset[str]
    channels: Mapping[str, tuple[int, ChannelIds]] = field(default_factory=dict)

    def value(self, name: str, value: Array) -> Array:
        """The value of a tensor of the teacher, with the channels that the other network has."""
        if name not in self.channels:
            return value
        axis, positions = self.channels[name]
        return np.take(value, positions, axis)


def unlike_tensors(model: Model, teacher: Model) -> frozenset[str]:
    """Outputs of nodes of a network that the teacher does not compute in the same way from the same tensors."""
    return frozenset(
        name
        for node in model.proto.graph.node
        for name in node.output
        if name and not _computes_alike(model, teacher, name)
    )


def producers_of_one_kind(model: Model, teacher: Model, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The nodes that make a tensor in both networks, if they have the same operator."""
    own, other = model.view.producer(name), teacher.view.producer(name)
    if own is None or other is None or (own.op_type, own.domain) != (other.op_type, other.domain):
        return None
    return own, other


def _computes_alike(model: Model, teacher: Model, name: str) -> bool:
    pair = producers_of_one_kind(model, teacher, name)
    if pair is None:
        return False
    own, other = pair
    if list(own.output) != list(other.output) or len(own.input) != len(other.input) or captured_names(own):
        return False
    if model.view.attributes(model.producers[name]) != teacher.view.attributes(teacher.producers[name]):
        return False
    return all(_reads_alike(model, teacher, *pair) for pair in zip(own.input, other.input, strict=True))


def _reads_alike(model: Model, teacher: Model, own: str, other: str) -> bool:
    """True if two inputs are the same tensor, or constants of the same value."""
    if own in model.origins and other in teacher.origins:
        return np.array_equal(model.constant(own), teacher.constant(other))
    return own == other and own not in model.origins and other not in teacher.origins

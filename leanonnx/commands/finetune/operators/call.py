"""The call of a torch operator: one node with its inputs and attributes, and the error for uses not covered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
import torch

from leanonnx.errors import ModelError

Tensor: TypeAlias = torch.Tensor
Outputs: TypeAlias = "Tensor | tuple[Tensor | None, ...]"


@dataclass(frozen=True, kw_only=True)
class TorchCall:
    """One node with its inputs; absent inputs are None.

    Tensors computed from shapes stay on the CPU, whatever device the network runs on.
    """

    node: onnx.NodeProto
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default; text as a string."""
        return self.attributes.get(name, default)

    def has(self, slot: int) -> bool:
        """Return True if an input slot is connected."""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def get(self, slot: int) -> Tensor | None:
        """The tensor in an input slot; None if the slot is not connected."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def value(self, slot: int = 0) -> Tensor:
        """The tensor in an input slot that must be connected."""
        tensor = self.get(slot)
        if tensor is None:
            raise self.error(f"input {slot} is missing")
        return tensor

    @property
    def operands(self) -> list[Tensor]:
        """All connected inputs, on one device."""
        return on_one_device(*[value for value in self.inputs if value is not None])

    def ints(self, slot: int, name: str) -> list[int] | None:
        """Integers given by an input or, in older operator sets, by an attribute; None if neither."""
        if self.has(slot):
            return self.required_ints(slot)
        given = self.attribute(name)
        return None if given is None else [int(value) for value in (given if isinstance(given, list) else [given])]

    def required_ints(self, slot: int) -> list[int]:
        """Integers in an input slot that must be connected."""
        return [int(value) for value in self.value(slot).reshape(-1).tolist()]

    def error(self, why: str) -> ModelError:
        """The error for a use of the operator that is not covered."""
        return uncovered_node(self.node, why)


Operator: TypeAlias = Callable[[TorchCall], Outputs]
Operators: TypeAlias = Mapping[tuple[str, str], Operator]


def uncovered_node(node: onnx.NodeProto, why: str) -> ModelError:
    """The error for a node that cannot be run in torch."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    name = node.name or next(iter(node.output), "")
    return ModelError(
        f"node '{name}' ({kind}) cannot be run in torch: {why}; finetune this network in its own training code, "
        "from the compressed weights"
    )


def on_one_device(*tensors: Tensor) -> list[Tensor]:
    """The tensors on one device: that of the first tensor that is not on the CPU."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return list(tensors) if device is None else [t.to(device) for t in tensors]

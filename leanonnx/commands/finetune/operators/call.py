"""What a torch operator sees of its node: inputs, attributes, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
import torch

from leanonnx.errors import ModelError

Tensor: TypeAlias = torch.Tensor
Outputs: TypeAlias = "Tensor | tuple[Tensor | None, ...]"


@dataclass(frozen=True)
class Call:
    """One node being run; absent inputs are None.

    Values that are computed from shapes are tensors on the CPU, whatever device the network runs on.
    """

    node: onnx.NodeProto
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, text as a string."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def get(self, index: int) -> Tensor | None:
        """An input that may be absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def x(self, index: int = 0) -> Tensor:
        """An input that the operator cannot do without."""
        found = self.get(index)
        if found is None:
            raise self.refused(f"input {index} is missing")
        return found

    @property
    def given(self) -> list[Tensor]:
        """All inputs that are there, on one device."""
        return together(*[value for value in self.inputs if value is not None])

    def ints(self, index: int) -> list[int]:
        """An input as a list of integers."""
        return [int(value) for value in self.x(index).reshape(-1).tolist()]

    def either(self, name: str, index: int) -> list[int] | None:
        """What older operator sets give as an attribute and newer ones as an input."""
        if self.has(index):
            return self.ints(index)
        found = self.attr(name)
        return None if found is None else [int(value) for value in (found if isinstance(found, list) else [found])]

    def refused(self, why: str) -> ModelError:
        """The error for a use of the operator that is not covered."""
        return refusal(self.node, why)


Operator: TypeAlias = Callable[[Call], Outputs]
Operators: TypeAlias = Mapping[tuple[str, str], Operator]


def refusal(node: onnx.NodeProto, why: str) -> ModelError:
    """The error for a node that cannot be trained through."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    name = node.name or next(iter(node.output), "")
    return ModelError(
        f"node '{name}' ({kind}) cannot be run in torch: {why}; finetune this network in its own training code, "
        "from the compressed weights"
    )


def together(*tensors: Tensor) -> list[Tensor]:
    """The tensors on one device: that of the first which is not on the CPU."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return list(tensors) if device is None else [t.to(device) for t in tensors]

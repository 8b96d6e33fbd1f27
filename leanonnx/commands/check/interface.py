"""Compare the interfaces of two models: the properties that callers rely on.

1. Inputs and outputs keep their names and their order.
2. Each keeps its type.
3. An input takes every size that it took before: free axes stay free.
4. An output keeps its declared axes; an axis without a declaration may get one.

Changes that break no caller give notes: inputs that take more sizes, renamed free axes, other versions of operator sets
or of the format, weights that callers can now, or can no longer, replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from leanonnx.formatting import count_text
from leanonnx.graph.model import Model
from leanonnx.graph.view import default_initializers
from leanonnx.runtime.trials import UNNAMED_AXIS, DeclaredSizes, declared_sizes


@dataclass(frozen=True)
class InterfaceChanges:
    """Changes of an interface: ``faults`` break callers, ``notes`` do not."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def interface_changes(base: Model, new: Model) -> InterfaceChanges:
    """Changes of the interface from one model to another."""
    faults: list[str] = []
    notes = _version_notes(base.proto, new.proto) + _replaceable_notes(base, new)
    sides = {
        "input": (base.inputs, new.inputs),
        "output": (list(base.proto.graph.output), list(new.proto.graph.output)),
    }
    for side, (old, young) in sides.items():
        faults += _name_faults(side, [v.name for v in old], [v.name for v in young])
        new_by_name = {value.name: value for value in young}
        for value in old:
            if value.name in new_by_name:
                broken, remarks = _value_changes(side, value, new_by_name[value.name])
                faults += broken
                notes += remarks
    return InterfaceChanges(tuple(faults), tuple(notes))


def _name_faults(side: str, old: Sequence[str], young: Sequence[str]) -> list[str]:
    """Faults for names that are gone, new, or in another order."""
    gone = [f"{side} '{name}' is gone" for name in old if name not in young]
    new = [f"{side} '{name}' is new" for name in young if name not in old]
    if not gone and not new and list(old) != list(young):
        return [f"the {side}s come in another order: {', '.join(young)}, was {', '.join(old)}"]
    return gone + new


def _value_changes(side: str, old: onnx.ValueInfoProto, young: onnx.ValueInfoProto) -> tuple[list[str], list[str]]:
    """Faults and notes of one input or output."""
    where = f"{side} '{old.name}'"
    if not all(value.type.HasField("tensor_type") for value in (old, young)):
        return ([f"{where} has another type"] if old.type != young.type else []), []
    kinds = [onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower() for v in (old, young)]
    if kinds[0] != kinds[1]:
        return [f"{where} is {kinds[1]}, was {kinds[0]}"], []
    before, after = declared_sizes(old), declared_sizes(young)
    change = [f"{where} is {_axes_text(after)}, was {_axes_text(before)}"] if before != after else []
    fits = _takes_sizes if side == "input" else _keeps_declaration
    compatible = len(before) == len(after) and all(fits(a, b) for a, b in zip(before, after, strict=True))
    return ([], change) if compatible else (change, [])


def _takes_sizes(old: int | str, young: int | str) -> bool:
    """Return True if an axis of an input takes every size that it took before."""
    return old == young or isinstance(young, str)


def _keeps_declaration(old: int | str, young: int | str) -> bool:
    """Return True if an axis of an output is declared as before, or for the first time."""
    return old in (young, UNNAMED_AXIS) or (isinstance(old, str) and isinstance(young, str))


def _axes_text(axes: DeclaredSizes) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _version_notes(old: onnx.ModelProto, young: onnx.ModelProto) -> list[str]:
    """Notes on changed versions of the format and of operator sets."""
    notes = [f"IR version {young.ir_version}, was {old.ir_version}"] if young.ir_version != old.ir_version else []
    before, after = ({o.domain or "ai.onnx": o.version for o in proto.opset_import} for proto in (old, young))
    for domain in sorted(before | after):
        if before.get(domain) != after.get(domain):
            version, was = after.get(domain, "none"), before.get(domain, "none")
            notes.append(f"operator set of {domain}: {version}, was {was}")
    return notes


def _replaceable_notes(base: Model, new: Model) -> list[str]:
    """Notes on weights that callers can replace in only one of the models."""
    old, young = default_initializers(base.proto), default_initializers(new.proto)
    fresh, gone = len(young - old), len(old - young)
    notes = [f"{count_text(fresh, 'weight')} can now be fed as inputs, or left out"] if fresh else []
    return notes + ([f"{count_text(gone, 'weight')} can no longer be fed as inputs"] if gone else [])

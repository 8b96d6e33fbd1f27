"""What callers of a model rely on, and whether another model keeps to it.

1. Inputs and outputs have the names that they had, in their order.
2. Each has the type that it had.
3. An input takes every size that it took: an axis that was free stays free.
4. An output is declared as it was; where an axis was declared as nothing at all, it may be declared as something.

What breaks no caller is worth a note: an input that takes more, another name of a free axis, other versions of operator
sets or of the format, weights that callers may or may no longer replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from leanonnx.formatting import counted
from leanonnx.graph.model import Model
from leanonnx.graph.view import overridden
from leanonnx.runtime.observation import UNKNOWN, Axes, declared

Value = onnx.ValueInfoProto


@dataclass(frozen=True)
class Changes:
    """How an interface differs: ``faults`` break callers, ``notes`` do not."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def interface_changes(base: Model, new: Model) -> Changes:
    """What has changed in the interface from one model to another."""
    faults: list[str] = []
    notes = _versions(base.proto, new.proto) + _replaceable(base, new)
    sides = {
        "input": (base.inputs, new.inputs),
        "output": (list(base.proto.graph.output), list(new.proto.graph.output)),
    }
    for side, (old, young) in sides.items():
        faults += _names(side, [v.name for v in old], [v.name for v in young])
        found = {value.name: value for value in young}
        for value in old:
            if value.name in found:
                broken, told = _value(side, value, found[value.name])
                faults += broken
                notes += told
    return Changes(tuple(faults), tuple(notes))


def _names(side: str, old: Sequence[str], young: Sequence[str]) -> list[str]:
    """Names that are gone, new, or in another order."""
    gone = [f"{side} '{name}' is gone" for name in old if name not in young]
    new = [f"{side} '{name}' is new" for name in young if name not in old]
    if not gone and not new and list(old) != list(young):
        return [f"the {side}s come in another order: {', '.join(young)}, was {', '.join(old)}"]
    return gone + new


def _value(side: str, old: Value, young: Value) -> tuple[list[str], list[str]]:
    """Faults and notes of one input or output."""
    where = f"{side} '{old.name}'"
    if not all(value.type.HasField("tensor_type") for value in (old, young)):
        return ([f"{where} has another type"] if old.type != young.type else []), []
    kinds = [onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower() for v in (old, young)]
    if kinds[0] != kinds[1]:
        return [f"{where} is {kinds[1]}, was {kinds[0]}"], []
    before, after = declared(old), declared(young)
    change = [f"{where} is {_text(after)}, was {_text(before)}"] if before != after else []
    fits = _takes if side == "input" else _promises
    kept = len(before) == len(after) and all(fits(a, b) for a, b in zip(before, after, strict=True))
    return ([], change) if kept else (change, [])


def _takes(old: int | str, young: int | str) -> bool:
    """Whether an axis of an input takes every size that it took."""
    return old == young or isinstance(young, str)


def _promises(old: int | str, young: int | str) -> bool:
    """Whether an axis of an output is declared as it was, or for the first time."""
    return old in (young, UNKNOWN) or (isinstance(old, str) and isinstance(young, str))


def _text(axes: Axes) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _versions(old: onnx.ModelProto, young: onnx.ModelProto) -> list[str]:
    """Other versions of the format and of operator sets."""
    notes = [f"IR version {young.ir_version}, was {old.ir_version}"] if young.ir_version != old.ir_version else []
    before, after = ({o.domain or "ai.onnx": o.version for o in proto.opset_import} for proto in (old, young))
    for domain in sorted(before | after):
        if before.get(domain) != after.get(domain):
            version, was = after.get(domain, "none"), before.get(domain, "none")
            notes.append(f"operator set of {domain}: {version}, was {was}")
    return notes


def _replaceable(base: Model, new: Model) -> list[str]:
    """Weights that callers may replace in one of the models only."""
    old, young = overridden(base.proto), overridden(new.proto)
    fresh, gone = len(young - old), len(old - young)
    notes = [f"{counted(fresh, 'weight')} can now be fed as inputs, or left out"] if fresh else []
    return notes + ([f"{counted(gone, 'weight')} can no longer be fed as inputs"] if gone else [])

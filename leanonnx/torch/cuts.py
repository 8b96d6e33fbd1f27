"""Cuts of a plan: the indices that it keeps of each constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import PlanError
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import Mask
from leanonnx.spelling import option
from leanonnx.surgery.patch import constant_of, kept_indices
from leanonnx.surgery.plan import Plan

KeptIndices = tuple[int, ...]
"""Indices kept on an axis."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A constant, by the name under which a node reads it, and the indices kept on each of its axes.

    ``value`` and ``node`` (the index of its consumer) are None if only the plan is known.  ``has_other_slices`` is
    True if other consumers need another slice of it, ``is_folded`` if the model computes it from other constants.
    """

    name: str
    shape: tuple[int, ...]
    kept: tuple[KeptIndices, ...]
    value: Array | None = None
    node: int | None = None
    has_other_slices: bool = False
    is_folded: bool = False

    @property
    def is_whole(self) -> bool:
        """True if nothing is removed."""
        return self.shape == tuple(map(len, self.kept))

    @property
    def is_uniform(self) -> bool:
        """True if all elements are equal, so that nothing was learnt."""
        return self.value is not None and bool(self.value.size and (self.value == self.value.flat[0]).all())


def planned_cuts(plan: Plan) -> list[Cut]:
    """Return the cuts recorded in a plan; a constant has the name of the initializer or node that holds it.

    Raises:
        PlanError: an entry is broken.
    """
    cuts = []
    for name, entry in plan.tensors.items():
        try:
            shape = tuple(entry["before"])
            cut = Cut(
                name=name, shape=shape, kept=_fill_indices(entry["kept"], shape), has_other_slices="others" in entry
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"{plan.origin}: the entry of '{name}' is broken ({error}); make the plan anew with "
                f"{option('plan_out')}"
            ) from error
        if any(not 0 <= k < size for size, kept in zip(cut.shape, cut.kept, strict=True) for k in kept):
            raise PlanError(
                f"{plan.origin}: the entry of '{name}' is broken (an index out of range); make the plan anew with "
                f"{option('plan_out')}"
            )
        cuts.append(cut)
    return cuts


def cuts_of_mask(dag: ChannelDag, alive: Mask) -> list[Cut]:
    """Return the cuts of a keep mask, one per input slot that reads a constant, in the order of the nodes."""
    nodes, origins = dag.model.proto.graph.node, dag.model.origins
    places = {(use.node, use.slot): use for use in sorted(dag.constant_uses, key=lambda use: (use.node, use.slot))}
    renamed = [node.output[0] in origins for node in nodes]
    consumers = Counter(name for node, same in zip(nodes, renamed, strict=True) if not same for name in node.input)
    sliced = Counter(nodes[node].input[slot] for node, slot in places)
    cuts = []
    for (node, slot), use in places.items():
        name, value = nodes[node].input[slot], constant_of(dag, use)
        cut = Cut(
            name=name,
            shape=value.shape,
            kept=_fill_indices(kept_indices(use, value.shape, alive), value.shape),
            value=value,
            node=node,
        )
        apart = not cut.is_whole and sliced[name] < consumers[name]
        cuts.append(replace(cut, has_other_slices=apart, is_folded=name in dag.model.folded))
    return cuts


def _fill_indices(kept: Sequence[Any], shape: tuple[int, ...]) -> tuple[KeptIndices, ...]:
    pairs = zip(kept, shape, strict=True)
    return tuple(tuple(range(size)) if index is None else tuple(map(int, index)) for index, size in pairs)

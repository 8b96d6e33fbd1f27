"""Interface between rules and analysis: a rule takes a ``Call`` (one node) and returns an ``Effect``.

An ``Effect`` holds the channels of the outputs, ties, kernels, slices of constants, pins with their reasons, and the
edit of attributes and shape constants for given kept channels.  The analysis of a model is composed of these effects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import (
    ChannelIds,
    Mask,
    Shape,
    any_along,
    channel_ids_along,
    compact_ids,
    on_axis,
    uniform_ids,
    varied_axes,
)
from leanonnx.rules import advice

TiePairs = tuple[ChannelIds, ChannelIds]
AttributeValue = int | float | list[int] | None
"""New value of an attribute; None removes it."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """Input tensor of a node; ``channel_ids`` is None if its data do not depend on a graph input.

    ``is_static``: True if it follows from constants of the file alone, not from input sizes or random numbers;
    ``preserves_zeros``: True if a channel whose layer outputs zeros is zero here too.  ``producer_op`` is the operator
    that outputs it, ``producer_input_shape`` the shape of that operator's first input.
    """

    name: str
    shape: Shape | None
    channel_ids: ChannelIds | None
    read: Callable[[], Array]
    is_static: bool = False
    producer_op: str = ""
    producer_input_shape: Shape | None = None
    preserves_zeros: bool = True

    @property
    def array(self) -> Array:
        """Value of a tensor that does not depend on a graph input."""
        return self.read()


@dataclass(frozen=True, kw_only=True)
class KernelBlock:
    """Kernels of a channel-mixing node, from ``sources[g, i]`` to ``destinations[g, o]`` in every conv group g.

    ``slot`` is the input slot of the weight; ``kernels()`` reads it as ``[G, O, I, *k]``.  ``input_channel_ids``: input
    channel of each element of the weight as stored; None if no channel can be removed.  ``taps``: multiply-adds of one
    kernel per output position, at ``positions`` positions.  ``is_counted``: True if these count as kernels.
    ``input_axis`` and ``output_axis``: axes of data and output along which sources and destinations lie.
    """

    sources: ChannelIds
    destinations: ChannelIds
    slot: int
    kernels: Callable[[], Array]
    input_channel_ids: ChannelIds | None = None
    strides: tuple[int, ...] = ()
    taps: int = 1
    positions: int = 1
    is_counted: bool = True
    input_axis: int = -1
    output_axis: int = -1


@dataclass(frozen=True)
class FixedEdges:
    """Edges without a kernel, from ``sources[n]`` to ``destinations[n]``, with gains ``gains[n]`` (None: 1)."""

    sources: ChannelIds
    destinations: ChannelIds
    gains: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Reduction:
    """Data in an input slot whose channels a node reduces together, so that removed channels must count as zeros.

    The masked original reads zeros in their place; ``Edit.output_scales`` corrects for their number if it matters (a
    mean).  ``destination`` [1] is the channel into which they are summed; None if the node only takes their norm.
    """

    slot: int
    channel_ids: ChannelIds
    destination: ChannelIds | None = None


@dataclass(frozen=True)
class Slice:
    """Slicing of the constant in an input slot: an element is kept iff its channel ids in all ``factors`` are kept."""

    slot: int
    factors: tuple[ChannelIds, ...]


@dataclass(frozen=True)
class Pin:
    """Channels that must not be removed, with the tensor, the reason, and advice for the user."""

    channel_ids: ChannelIds
    tensor: str
    reason: str
    advice: str = advice.NO_EXACT_FORM


@dataclass(frozen=True)
class KeptChannels:
    """Kept channels, as passed to a rule's rewrite."""

    alive: Mask

    def mask(self, channel_ids: ChannelIds) -> Mask:
        """Keep mask of positions, in the shape of ``channel_ids``."""
        return self.alive[channel_ids]

    def axis_size(self, channel_ids: ChannelIds, axis: int, size: int) -> int:
        """Size of a tensor's axis after surgery; ``size`` is the original one."""
        index = any_along(self.alive[channel_ids], axis)
        return int(index.sum()) * (size if index.size == 1 else 1)


@dataclass(frozen=True)
class ShapeEdit:
    """New values of some entries of an integer vector of length ``length``; the other entries do not change.

    ``original_sizes`` holds, for entries that are the size of a whole axis, that size without the edit.  If the vector
    is computed at run time, surgery scales such an entry by new / original size, so that it follows a free axis.
    """

    values: Mapping[int, int]
    original_sizes: Mapping[int, int] = field(default_factory=dict)
    length: int = 0


@dataclass(frozen=True)
class Select:
    """Positions of a computed input that are still read, along one axis; an empty selection drops the input."""

    axis: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Edit:
    """Changes to one node.

    ``inputs``, by slot, get a new constant, new entries of a shape vector, or a selection of positions; ``outputs``, by
    index, get new entries of a shape vector; ``output_scales``: factors of outputs, by index.
    """

    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    inputs: Mapping[int, Array | ShapeEdit | Select] = field(default_factory=dict)
    outputs: Mapping[int, ShapeEdit] = field(default_factory=dict)
    output_scales: Mapping[int, float] = field(default_factory=dict)


Rewrite = Callable[[KeptChannels], Edit]
Move = Callable[[ChannelIds], ChannelIds]


@dataclass(frozen=True)
class Effect:
    """Result of a rule for one node; ``outputs`` holds the channel ids of each output.

    ``concat_slots``: pairs (channel, slot); a slot can be removed alone, and is removed with its channel.
    ``starts``: channels that no kernel leads to but at which chains may start (constants).
    ``moves``: for each output, the rearrangement of the first input's data; where the kept positions are not a product
    of index sets, surgery replaces a run of such operators by one Gather.
    ``needs_gather``: True if a Gather must replace the operator whenever channels are removed.
    """

    outputs: tuple[ChannelIds, ...]
    ties: tuple[TiePairs, ...] = ()
    concat_slots: tuple[TiePairs, ...] = ()
    kernel_blocks: tuple[KernelBlock, ...] = ()
    fixed_edges: tuple[FixedEdges, ...] = ()
    slices: tuple[Slice, ...] = ()
    reductions: tuple[Reduction, ...] = ()
    pins: tuple[Pin, ...] = ()
    starts: tuple[ChannelIds, ...] = ()
    rewrite: Rewrite | None = None
    moves: tuple[Move, ...] = ()
    needs_gather: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """One node, as passed to its rule.

    ``inputs[k]`` is None if an optional input is missing.  ``mint(n)`` returns n new channel ids; ``channel_count()``
    is the number of ids so far.  ``tie_by_position``: True if a grouped operator should tie the same positions of all
    conv groups instead of whole groups.  ``consumers``: the operators that read each output ("" for a graph output).
    """

    op: str
    domain: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[Shape | None, ...]
    mint: Callable[[int], ChannelIds]
    channel_count: Callable[[], int]
    tie_by_position: bool = False
    consumers: tuple[tuple[str, ...], ...] = ()

    @property
    def title(self) -> str:
        """Operator and name of the node, for messages."""
        return f"{self.op} '{self.name}'"

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        value = self.attributes.get(name)
        return default if value is None else value

    def string_attribute(self, name: str, default: str | None = None) -> str:
        """Value of a string attribute, decoded if it is stored as bytes."""
        value = self.attribute(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def computed_side_inputs(self) -> dict[str, ChannelIds]:
        """Channel ids, each once, of the computed inputs behind the first, by name."""
        beside = (value for value in self.inputs[1:] if value is not None)
        return {value.name: np.unique(value.channel_ids) for value in beside if value.channel_ids is not None}

    def has_input(self, slot: int) -> bool:
        """Return True if an input slot is connected."""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def value(self, slot: int) -> Value:
        """Input tensor in a slot that must be connected."""
        value = self.inputs[slot] if slot < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"input {slot} is missing", advice.EXPORT_AGAIN)
        return value

    def channel_ids(self, slot: int) -> ChannelIds:
        """Channel ids of the data in a slot."""
        channel_ids = self.value(slot).channel_ids
        if channel_ids is None:
            raise Unsupported(f"input {slot} is a constant", advice.FOLD_CONSTANTS)
        return channel_ids

    def shape(self, slot: int) -> Shape:
        """Observed shape of the data in a slot."""
        shape = self.value(slot).shape
        if shape is None:
            raise Unsupported(f"the shape of input {slot} is unknown", advice.EXPORT_AGAIN)
        return shape

    def output_shape(self, index: int = 0) -> Shape:
        """Observed shape of an output."""
        shape = self.output_shapes[index]
        if shape is None:
            raise Unsupported(f"the shape of output {index} is unknown", advice.EXPORT_AGAIN)
        return shape

    def consumer_ops(self, index: int) -> set[str]:
        """Operators that read an output ("" for a graph output)."""
        return set(self.consumers[index]) if index < len(self.consumers) else {""}

    def is_constant(self, slot: int) -> bool:
        """Return True if the value in a slot does not depend on a graph input."""
        return self.has_input(slot) and self.value(slot).channel_ids is None

    def array(self, slot: int) -> Array:
        """Value in a slot that must be constant."""
        if not self.is_constant(slot):
            raise Unsupported(f"input {slot} is computed from a graph input", advice.MAKE_CONSTANT)
        return self.value(slot).array

    def ints(self, slot: int, name: str | None = None) -> list[int] | None:
        """Integers from a constant input or, in older opsets, from an attribute; None if neither is present."""
        if self.has_input(slot):
            return [int(x) for x in self.array(slot).ravel()]
        value = self.attributes.get(name or "")
        return None if value is None else [int(x) for x in np.atleast_1d(value)]

    def channel_ids_along(self, slot: int, axis: int) -> tuple[ChannelIds, list[TiePairs]]:
        """Channel id of each slice of an input along one axis, and the ties that make whole slices removable."""
        shape = self.shape(slot)
        return channel_ids_along(self.channel_ids(slot), axis, shape[axis])


class Unsupported(Exception):
    """Raised by a rule that does not cover this form of the operator, with the pin's reason and advice for the user."""

    def __init__(self, reason: str, advice: str = advice.NO_EXACT_FORM) -> None:
        super().__init__(reason)
        self.advice = advice


Rule = Callable[[Call], Effect]


def mint_for_rows(call: Call, rows: ChannelIds) -> ChannelIds:
    """New channel ids [n], one for each distinct row of ``rows`` [n, k].

    Positions that repeat the same channels (such as a head in each sample of a batch) share an id.
    """
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    return call.mint(unique.shape[0])[inverse.ravel()]


def channels_on_axis(call: Call, slot: int, axis: int) -> tuple[ChannelIds, list[TiePairs]]:
    """Channel ids [1, …, C, …, 1] of an input reduced to one axis, and the ties that this requires."""
    vector, ties = call.channel_ids_along(slot, axis)
    rank = len(call.shape(slot))
    return compact_ids(on_axis(vector, axis, rank)), ties


def combine_axes(call: Call, axes: set[int], reason: str, remedy: str = advice.NO_EXACT_FORM) -> Effect:
    """Effect of a node that combines all positions along some axes of its first input.

    Channels that differ only along these axes are tied and become one channel of the output.  Raises ``Unsupported`` if
    the input's channels lie on these axes only.
    """
    channel_ids = call.channel_ids(0)
    along_axes = sorted(axes & set(varied_axes(channel_ids)))
    if not along_axes:
        return Effect((channel_ids,))
    if set(varied_axes(channel_ids)) <= axes:
        raise Unsupported(reason, remedy)
    rows = np.moveaxis(channel_ids, along_axes, range(len(along_axes)))
    rows = rows.reshape(-1, *rows.shape[len(along_axes) :])
    fresh = mint_for_rows(call, rows.reshape(rows.shape[0], -1).T).reshape(rows[0].shape)
    pair = (rows.ravel(), np.broadcast_to(fresh, rows.shape).ravel())
    return Effect((np.expand_dims(fresh, along_axes),), (pair,), fixed_edges=(FixedEdges(*pair),))


def pin_all(call: Call, reason: str, advice: str = advice.NO_EXACT_FORM) -> Effect:
    """Pin all inputs and outputs of a node; each output becomes one channel that all inputs lead to."""
    labelled = [v for v in call.inputs if v is not None and v.channel_ids is not None]
    pins = tuple(
        Pin(channel_ids=np.unique(v.channel_ids), tensor=v.name, reason=reason, advice=advice)
        for v in labelled
        if v.channel_ids is not None
    )
    fresh = call.mint(1)
    sources = np.unique(np.concatenate([pin.channel_ids for pin in pins])) if pins else np.zeros(0, np.int64)
    fixed_edges = (FixedEdges(sources, np.repeat(fresh, sources.size)),) if sources.size else ()
    outputs = tuple(uniform_ids(int(fresh[0]), len(s) if s is not None else 0) for s in call.output_shapes)
    return Effect(
        outputs,
        fixed_edges=fixed_edges,
        pins=(*pins, Pin(channel_ids=fresh, tensor=call.outputs[0], reason=reason, advice=advice)),
    )


def pin_side_inputs(call: Call, effect: Effect, role: str) -> Effect:
    """Pin the computed inputs that a node reads beside its data (a sampling grid, a size, …).

    ``role`` completes the reason of the pins, "Operator 'name' …".
    """
    beside = call.computed_side_inputs()
    if not beside:
        return effect
    channel_ids = np.unique(np.concatenate([output.ravel() for output in effect.outputs]))
    fresh = call.mint(channel_ids.size)
    fixed_edges = [FixedEdges(np.repeat(side, fresh.size), np.tile(fresh, side.size)) for side in beside.values()]
    pins = [
        Pin(channel_ids=side, tensor=name, reason=f"{call.title} {role}", advice=advice.MAKE_CONSTANT)
        for name, side in beside.items()
    ]
    return replace(
        effect,
        outputs=tuple(fresh[np.searchsorted(channel_ids, output)] for output in effect.outputs),
        ties=(*effect.ties, (channel_ids, fresh)),
        fixed_edges=(*effect.fixed_edges, FixedEdges(channel_ids, fresh), *fixed_edges),
        pins=(*effect.pins, *pins),
        moves=(),
    )

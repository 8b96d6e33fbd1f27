"""What a rule sees of one node (``Call``) and what it answers (``Effect``).

A rule answers a fixed small set of questions about one node: which channels its outputs hold, which channels are
tied, which kernels lead from channel to channel, how its constants are to be sliced, what is pinned and why, and
how attributes and shape constants follow from the channels that are kept.  Whole models emerge from these answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import ChannelIds, Mask, Shape, along, compact, on_axis, projection, uniform, varied
from leanonnx.rules import advice

TiePairs = tuple[ChannelIds, ChannelIds]
Attribute = int | float | list[int] | None
"""A new value of an attribute; None removes it."""


@dataclass(frozen=True)
class Value:
    """A tensor that a node reads; ``labels`` is None where its data depend on no graph input.

    ``held`` tells that it follows from constants of the file alone: neither from sizes of inputs nor from noise.
    ``maker`` is the operator that puts it out, ``source`` the shape of what that one reads first.  ``keeps_zero``: a
    channel that its layer puts out as zeros is zeros here.
    """

    name: str
    shape: Shape | None
    channel_ids: ChannelIds | None
    read: Callable[[], Array]
    held: bool = False
    maker: str = ""
    source: Shape | None = None
    keeps_zero: bool = True

    @property
    def array(self) -> Array:
        """The value of a tensor that depends on no graph input."""
        return self.read()


@dataclass(frozen=True)
class KernelBlock:
    """Kernels of a channel-mixing node: ``sources[g, i]`` to ``targets[g, o]`` for every group g.

    ``kernels()`` reads the weights as ``[G, O, I, *k]``; ``inward`` holds the input channel of each element of the
    weight as stored (None: no channel can go); ``taps`` is the number of multiply-adds of one kernel per output
    position, ``positions`` the number of output positions; ``counted`` tells whether its kernels count as such.
    ``axis`` is that of the data along which the sources lie, ``onto`` that of the output for the targets.
    """

    sources: ChannelIds
    destinations: ChannelIds
    slot: int
    kernels: Callable[[], Array]
    inward: ChannelIds | None = None
    strides: tuple[int, ...] = ()
    taps: int = 1
    positions: int = 1
    counted: bool = True
    axis: int = -1
    onto: int = -1


@dataclass(frozen=True)
class FixedEdges:
    """Fixed edges: ``sources[n]`` to ``targets[n]``, each channel scaled by ``gains[n]``."""

    sources: ChannelIds
    destinations: ChannelIds
    gains: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Reduction:
    """Data in an input slot of which a node takes channels together: dead ones have to count as zeros.

    ``labels`` are laid out as the data.  The proof's reference reads zeros in place of dead channels there, and
    ``Edit.scales`` makes up for their number where that matters.  ``target`` [1] is the channel that they are added up
    in, with the gains of the links that lead to it; None where they are only measured by it (a norm).
    """

    slot: int
    channel_ids: ChannelIds
    destination: ChannelIds | None = None


@dataclass(frozen=True)
class Slice:
    """How the constant in an input slot is sliced: an element lives iff its labels in all factors live."""

    slot: int
    factors: tuple[ChannelIds, ...]


@dataclass(frozen=True)
class Pin:
    """Channels that may not be removed, why, and what a user can do about it."""

    channel_ids: ChannelIds
    tensor: str
    reason: str
    advice: str = advice.NONE


@dataclass(frozen=True)
class KeptChannels:
    """The channels that survive, as a rule's rewrite sees them."""

    alive: Mask

    def mask(self, channel_ids: ChannelIds) -> Mask:
        """Which positions survive."""
        return self.alive[channel_ids]

    def count(self, channel_ids: ChannelIds, axis: int, size: int) -> int:
        """The size of a tensor's axis after surgery."""
        index = projection(self.alive[channel_ids], axis)
        return int(index.sum()) * (size if index.size == 1 else 1)


@dataclass(frozen=True)
class ShapeEdit:
    """New values for some entries of an integer vector of length ``size``; the others stay.

    ``before`` holds, for entries that are the size of a whole axis, the size that stands there without the edit.  Where
    the vector is computed, surgery writes such an entry in proportion to it, so that it follows a free axis.
    """

    values: Mapping[int, int]
    before: Mapping[int, int] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True)
class Select:
    """Which positions of a computed input are still read, along one axis; none at all drops the input."""

    axis: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Edit:
    """How one node changes.

    ``attributes`` are set (None: removed); ``inputs`` get a new constant, new entries, or a selection of positions;
    ``outputs`` get new entries, or are multiplied by ``scales``.
    """

    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    inputs: Mapping[int, Array | ShapeEdit | Select] = field(default_factory=dict)
    outputs: Mapping[int, ShapeEdit] = field(default_factory=dict)
    scales: Mapping[int, float] = field(default_factory=dict)


Rewrite = Callable[[KeptChannels], Edit]
Move = Callable[[ChannelIds], ChannelIds]


@dataclass(frozen=True)
class Effect:
    """A rule's answer for one node.

    ``implied`` holds pairs (channel, reader): the reader can be dropped alone, but not outlive the channel.
    ``starts`` are channels that chains may start from although no kernel leads to them (constants).
    ``moves`` says, per output, how the operator rearranges the data of its first input; where the kept positions
    are no product of index sets, surgery replaces a run of such operators by one Gather.  ``gathers`` tells that
    the operator cannot follow a keep set itself, so that a Gather always takes its place.
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
    gathers: bool = False


@dataclass(frozen=True)
class Call:
    """One node as a rule sees it.

    ``inputs[k]`` is None where the optional input is left out; ``mint(n)`` gives n fresh labels, ``minted()`` tells
    how many there are.  ``by_position`` asks a grouped operator for ties by position instead of whole groups.
    ``readers`` are the operators that read each output, "" standing for the graph itself.
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
    minted: Callable[[], int]
    by_position: bool = False
    consumers: tuple[tuple[str, ...], ...] = ()

    @property
    def title(self) -> str:
        """The node as messages name it."""
        return f"{self.op} '{self.name}'"

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        value = self.attributes.get(name)
        return default if value is None else value

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string, which some readers give as bytes."""
        found = self.attribute(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def has(self, slot: int) -> bool:
        """Whether an input slot is connected."""
        return slot < len(self.inputs) and self.inputs[slot] is not None

    def value(self, slot: int) -> Value:
        """The value in an input slot that must be connected."""
        found = self.inputs[slot] if slot < len(self.inputs) else None
        if found is None:
            raise Unsupported(f"input {slot} is missing", advice.EXPORT)
        return found

    def channel_ids(self, slot: int) -> ChannelIds:
        """Labels of the data in a slot."""
        found = self.value(slot).channel_ids
        if found is None:
            raise Unsupported(f"input {slot} is a constant", advice.FOLD)
        return found

    def shape(self, slot: int) -> Shape:
        """Shape of the data in a slot when the model was run."""
        found = self.value(slot).shape
        if found is None:
            raise Unsupported(f"the shape of input {slot} is unknown", advice.EXPORT)
        return found

    def output_shape(self, index: int = 0) -> Shape:
        """Shape of an output when the model was run."""
        found = self.output_shapes[index]
        if found is None:
            raise Unsupported(f"the shape of output {index} is unknown", advice.EXPORT)
        return found

    def consumed_by(self, index: int) -> set[str]:
        """The operators that read an output, "" standing for the graph itself."""
        return set(self.consumers[index]) if index < len(self.consumers) else {""}

    def is_constant(self, slot: int) -> bool:
        """Whether the value in a slot depends on no graph input."""
        return self.has(slot) and self.value(slot).channel_ids is None

    def array(self, slot: int) -> Array:
        """The value in a slot that must be constant."""
        if not self.is_constant(slot):
            raise Unsupported(f"input {slot} is computed from a graph input", advice.CONSTANT)
        return self.value(slot).array

    def ints(self, slot: int, name: str | None = None) -> list[int] | None:
        """Integers given by an input or, in older operator sets, by an attribute; None if neither."""
        if self.has(slot):
            return [int(x) for x in self.array(slot).reshape(-1)]
        found = self.attributes.get(name or "")
        return None if found is None else [int(x) for x in np.atleast_1d(found)]

    def slices(self, slot: int, axis: int) -> tuple[ChannelIds, list[TiePairs]]:
        """Label of each slice of an input along one axis, with the ties that make slices removable."""
        shape = self.shape(slot)
        return along(self.channel_ids(slot), axis, shape[axis])


class Unsupported(Exception):
    """A rule does not cover this form of the operator: the reason for the pin, and what a user can do about it."""

    def __init__(self, reason: str, advice: str = advice.NONE) -> None:
        super().__init__(reason)
        self.advice = advice


Rule = Callable[[Call], Effect]


def mint_for_rows(call: Call, rows: ChannelIds) -> ChannelIds:
    """Fresh labels [n], one for each distinct row of ``rows`` [n, k].

    Positions that repeat the same channels (the heads of each sample of a batch) share a label, so that there are as
    many labels whatever the size of the batch.
    """
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    return call.mint(unique.shape[0])[inverse.reshape(-1)]


def kept_together(call: Call, slot: int, axis: int) -> tuple[ChannelIds, list[TiePairs]]:
    """Labels [1, …, C, …, 1] of an input whose channels lie on one axis, and the ties needed for that."""
    vector, ties = call.slices(slot, axis)
    rank = len(call.shape(slot))
    return compact(on_axis(vector, axis, rank)), ties


def taken_together(call: Call, axes: set[int], reason: str, why: str = advice.NONE) -> Effect:
    """The effect of a node that takes all positions on some axes of its first input together.

    Channels that differ on these axes alone live and die together, and become one channel of the output; there must
    be others.  The output's labels have size 1 on these axes where channels lay.

    Raises:
        Unsupported: the input's channels lie on these axes only.
    """
    channel_ids = call.channel_ids(0)
    along_axes = sorted(axes & set(varied(channel_ids)))
    if not along_axes:
        return Effect((channel_ids,))
    if set(varied(channel_ids)) <= axes:
        raise Unsupported(reason, why)
    rows = np.moveaxis(channel_ids, along_axes, range(len(along_axes)))
    rows = rows.reshape(-1, *rows.shape[len(along_axes) :])
    fresh = mint_for_rows(call, rows.reshape(rows.shape[0], -1).T).reshape(rows[0].shape)
    pair = (rows.reshape(-1), np.broadcast_to(fresh, rows.shape).reshape(-1))
    return Effect((np.expand_dims(fresh, along_axes),), (pair,), fixed_edges=(FixedEdges(*pair),))


def pin_all(call: Call, reason: str, advice: str = advice.NONE) -> Effect:
    """Pin whatever a node reads; each output is one channel of its own that all inputs feed."""
    labelled = [v for v in call.inputs if v is not None and v.channel_ids is not None]
    pins = tuple(Pin(np.unique(v.channel_ids), v.name, reason, advice) for v in labelled if v.channel_ids is not None)
    fresh = call.mint(1)
    sources = np.unique(np.concatenate([pin.channel_ids for pin in pins])) if pins else np.zeros(0, np.int64)
    links = (FixedEdges(sources, np.repeat(fresh, sources.size)),) if sources.size else ()
    outputs = tuple(uniform(int(fresh[0]), len(s) if s is not None else 0) for s in call.output_shapes)
    return Effect(outputs, fixed_edges=links, pins=(*pins, Pin(fresh, call.outputs[0], reason, advice)))


def steered(call: Call, effect: Effect, role: str) -> Effect:
    """The effect of a node that reads computed tensors beside its data, in the role named.

    Those are pinned, and lead on to fresh labels of the outputs.
    """
    beside = [v for v in call.inputs[1:] if v is not None and v.channel_ids is not None]
    if not beside:
        return effect
    channel_ids = np.unique(np.concatenate([found.reshape(-1) for found in effect.outputs]))
    fresh = call.mint(channel_ids.size)
    sources = [np.unique(v.channel_ids) for v in beside if v.channel_ids is not None]
    links = [FixedEdges(np.repeat(side, fresh.size), np.tile(fresh, side.size)) for side in sources]
    pins = [Pin(side, v.name, f"{call.title} {role}", advice.CONSTANT) for v, side in zip(beside, sources, strict=True)]
    return replace(
        effect,
        outputs=tuple(fresh[np.searchsorted(channel_ids, found)] for found in effect.outputs),
        ties=(*effect.ties, (channel_ids, fresh)),
        fixed_edges=(*effect.fixed_edges, FixedEdges(channel_ids, fresh), *links),
        pins=(*effect.pins, *pins),
        moves=(),
    )


def broadcast_factor(channel_ids: ChannelIds, shape: Shape) -> tuple[ChannelIds, list[TiePairs]]:
    """Labels of a constant that broadcasts against a labelled tensor, and ties where slices must agree.

    An axis where the constant has size 1 is not sliced; where the labels change along such an axis too, all
    labels that share an index of the sliced axes are tied.
    """
    rank = len(shape)
    pad = (1,) * (rank - channel_ids.ndim)
    aligned = channel_ids.reshape(pad + channel_ids.shape)
    lead = aligned.ndim - rank
    kept = [k for k in varied(aligned) if k >= lead and shape[k - lead] != 1]
    lost = [k for k in varied(aligned) if k not in kept]
    ties: list[TiePairs] = []
    if kept and lost:
        moved = np.moveaxis(aligned, lost, range(len(lost)))
        rows = moved.reshape(-1, *moved.shape[len(lost) :])
        ties = [(np.broadcast_to(rows[0], rows[1:].shape), rows[1:])]
    index = tuple(slice(None) if k in kept else slice(0, 1) for k in range(aligned.ndim))
    return aligned[index].reshape(aligned[index].shape[lead:]), ties

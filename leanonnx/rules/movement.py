"""Operators that move data without changing it: they act on the labels as on the data.

Where the kept positions stay a product of index sets, shape constants are rewritten; where they do not (a channel
shuffle), surgery replaces the run of movements by one Gather, for which each rule gives its ``moves``.
"""

from __future__ import annotations

import math

import numpy as np

from leanonnx.labels import Labels, Mask, Shape, compact, on_axis, projection, reshape, uniform, varied
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    Entries,
    Kept,
    Link,
    Move,
    Pairs,
    Pick,
    Slice,
    Unsupported,
    broadcast_factor,
    kept_together,
)


def reshaped(call: Call) -> Effect:
    """Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21: the target of a Reshape names the kept channels."""
    before, after = call.shape(0), call.output_shape()
    labels = call.labels(0)
    output = reshape(labels, before, after)
    rewrite = None
    if call.op == "Reshape":
        target = call.ints(1, "shape") or []
        frozen = bool(call.attribute("allowzero", 0))

        def rewrite(kept: Kept) -> Edit:
            entries = _target_entries(kept, labels, output, before, after, target, frozen)
            if call.has(1):
                return Edit(inputs={1: Entries(entries)})
            return Edit({"shape": [entries.get(k, value) for k, value in enumerate(target)]})

    return Effect((output,), rewrite=rewrite, moves=(lambda given: reshape(given, before, after),))


def _target_entries(
    kept: Kept, labels: Labels, output: Labels, before: Shape, after: Shape, target: list[int], frozen: bool
) -> dict[int, int]:
    """Entries of a Reshape target that must name the kept sizes; -1 and 0 follow by themselves where they can."""
    found = {}
    for axis, value in enumerate(target):
        size = kept.count(output, axis, after[axis])
        if value == -1 or (value == 0 and not frozen and kept.count(labels, axis, before[axis]) == size):
            continue
        if size != after[axis] or value == 0:
            found[axis] = size
    return found


def transpose(call: Call) -> Effect:
    """Transpose-21."""
    rank = len(call.shape(0))
    order = [int(k) for k in call.attribute("perm", list(range(rank))[::-1])]
    return Effect((call.labels(0).transpose(order),), moves=(lambda given: given.transpose(order),))


def expand(call: Call) -> Effect:
    """Expand-13: the target size names the kept channels."""
    shape = call.output_shape()
    labels = call.labels(0)
    output = labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape)
    lead = len(shape) - math.prod(call.shape(1))

    def rewrite(kept: Kept) -> Edit:
        sizes = {k - lead: kept.count(output, k, shape[k]) for k in varied(output) if k >= lead}
        return Edit(inputs={1: Entries({k: n for k, n in sizes.items() if n != shape[k + lead]})})

    return Effect((output,), rewrite=rewrite)


def tile(call: Call) -> Effect:
    """Tile-13: each copy holds the same channels."""
    repeats = call.ints(1) or []
    labels = call.labels(0)
    times = [repeat if size > 1 else 1 for repeat, size in zip(repeats, labels.shape, strict=True)]
    return Effect((np.tile(labels, times),))


def concat(call: Call) -> Effect:
    """Concat-13.

    Along the channel axis each position of the output is a reader of its operand's channel: it cannot outlive the
    channel, but a consumer can do without it.  Along another axis the operands' channels are tied.
    """
    shape = call.output_shape()
    axis = int(call.attribute("axis", 1)) % len(shape)
    slots = [k for k in range(len(call.inputs)) if call.has(k)]
    computed = [k for k in slots if not call.is_constant(k)]
    axes = {a for k in computed for a in varied(call.labels(k))}
    if axes - {axis} and axis in axes:
        raise Unsupported("its operands hold channels on the concatenated axis and on another")
    return _concat_other(call, slots, computed, axis) if axes - {axis} else _concat_channels(call, slots, axis)


def _concat_channels(call: Call, slots: list[int], axis: int) -> Effect:
    rank = len(call.output_shape())
    parts: list[Labels] = []
    implied: list[Pairs] = []
    links: list[Link] = []
    slices: list[Slice] = []
    starts: list[Labels] = []
    operands: dict[int, tuple[Labels, Labels]] = {}
    for slot in slots:
        size = call.shape(slot)[axis]
        if call.is_constant(slot):
            readers = call.mint(size)
            operands[slot] = (readers, readers)
            slices.append(Slice(slot, (on_axis(readers, axis, rank),)))
            starts += [readers] if np.any(call.array(slot)) else []
        else:
            vector, _ = call.slices(slot, axis)
            unique, inverse = np.unique(vector, return_inverse=True)
            minted = call.mint(unique.size)
            readers = minted[inverse]
            implied.append((unique, minted))
            links.append(Link(unique, minted))
            operands[slot] = (vector, readers)
        parts.append(readers)

    def rewrite(kept: Kept) -> Edit:
        found = {slot: _pick(kept, axis, *pair) for slot, pair in operands.items()}
        return Edit(inputs={slot: pick for slot, pick in found.items() if pick is not None})

    return Effect(
        (on_axis(np.concatenate(parts), axis, rank),),
        implied=tuple(implied),
        links=tuple(links),
        slices=tuple(slices),
        starts=tuple(starts),
        rewrite=rewrite,
    )


def _pick(kept: Kept, axis: int, vector: Labels, readers: Labels) -> Pick | None:
    """Which of an operand's surviving positions are read; None where all are."""
    read = kept.mask(readers)[kept.mask(vector)]
    return None if read.size and read.all() else Pick(axis, np.flatnonzero(read))


def _concat_other(call: Call, slots: list[int], computed: list[int], axis: int) -> Effect:
    own = {k: call.labels(k) for k in computed}
    joint = np.broadcast_shapes(*[labels.shape for labels in own.values()])
    spread = {k: np.broadcast_to(labels, joint) for k, labels in own.items()}
    first = spread[computed[0]]
    if all(np.array_equal(first, other) for other in spread.values()):
        out, ties, links = first, [], []
    else:
        out = call.mint(math.prod(joint)).reshape(joint)
        ties = [(labels.reshape(-1), out.reshape(-1)) for labels in spread.values()]
        links = [Link(*pair) for pair in ties]
    slices = []
    for slot in set(slots) - set(computed):
        factor, more = broadcast_factor(out, call.shape(slot))
        ties += more
        slices += [Slice(slot, (factor,))] if varied(factor) else []
    return Effect((out,), tuple(ties), links=tuple(links), slices=tuple(slices))


def split(call: Call) -> Effect:
    """Split-18: sizes follow from the channels kept in each part."""
    labels = call.labels(0)
    axis = int(call.attribute("axis", 0)) % labels.ndim
    sizes = [shape[axis] if shape else 0 for shape in call.output_shapes]
    ends = np.cumsum(sizes)
    moves = tuple(_window(axis, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True))
    outputs = tuple(compact(move(labels)) for move in moves)
    if axis not in varied(labels):
        return Effect(outputs, moves=moves)

    def rewrite(kept: Kept) -> Edit:
        kept_sizes = [kept.count(out, axis, size) for out, size in zip(outputs, sizes, strict=True)]
        if call.opset < 13:
            return Edit({"split": kept_sizes})
        return Edit({"num_outputs": None}, inputs={1: np.asarray(kept_sizes, np.int64)})

    return Effect(outputs, rewrite=rewrite, moves=moves)


def _window(axis: int, start: int, end: int) -> Move:
    """Labels of the positions start to end of one axis."""

    def move(given: Labels) -> Labels:
        index = (slice(None),) * axis + (slice(start, end),)
        return given[index] if given.shape[axis] > 1 else given

    return move


def slice_(call: Call) -> Effect:
    """Slice-13; on the channel axis the bounds are rewritten (a step other than 1 is pinned)."""
    shape, labels = call.shape(0), call.labels(0)
    starts, ends = call.ints(1, "starts") or [], call.ints(2, "ends") or []
    axes = [a % len(shape) for a in (call.ints(3, "axes") or range(len(starts)))]
    steps = call.ints(4) or [1] * len(axes)
    windows = {
        a: slice(*slice(s, _end(e, p), p).indices(shape[a]))
        for a, s, e, p in zip(axes, starts, ends, steps, strict=True)
    }
    touched = [a for a in axes if a in varied(labels)]
    if any(windows[a].step != 1 for a in touched):
        raise Unsupported("it takes every n-th channel")

    def move(given: Labels) -> Labels:
        for a, window in windows.items():
            if given.shape[a] > 1:
                given = given[(slice(None),) * a + (_forward(window),)]
        return given

    def rewrite(kept: Kept) -> Edit:
        bounds = {axes.index(a): _new_bounds(kept.mask(labels), a, windows[a]) for a in touched}
        low, high = ({k: pair[side] for k, pair in bounds.items()} for side in (0, 1))
        if call.has(1):
            return Edit(inputs={1: Entries(low), 2: Entries(high)})
        return Edit({"starts": _patched(starts, low), "ends": _patched(ends, high)})

    return Effect((compact(move(labels)),), rewrite=rewrite if touched else None, moves=(move,))


def _end(end: int, step: int) -> int | None:
    """ONNX writes 'before the first element' of a backward slice as a very negative number."""
    return None if step < 0 and end < -(1 << 30) else end


def _forward(window: slice) -> slice:
    return slice(window.start, None if window.step < 0 and window.stop < 0 else window.stop, window.step)


def _patched(values: list[int], entries: dict[int, int]) -> list[int]:
    return [entries.get(k, value) for k, value in enumerate(values)]


def _new_bounds(mask: Mask, axis: int, window: slice) -> tuple[int, int]:
    alive = projection(mask, axis)
    start = int(alive[: window.start].sum())
    return start, start + int(alive[window.start : window.stop].sum())


def gather(call: Call) -> Effect:
    """Gather-13 with constant indices; on the channel axis the indices are renumbered."""
    if call.is_constant(0):
        raise Unsupported("it looks up rows of a constant table")
    labels, shape = call.labels(0), call.shape(0)
    axis = int(call.attribute("axis", 0)) % labels.ndim
    if axis not in varied(labels):
        if not call.is_constant(1) and varied(call.labels(1)):
            raise Unsupported("its indices hold channels")
        return Effect((_inserted(labels, axis, len(call.shape(1))),), moves=_gather_moves(call, axis))
    indices = call.array(1).astype(np.int64) % shape[axis]
    if indices.ndim > 1:
        raise Unsupported("it gathers channels by a table of indices")
    output = compact(np.take(labels, indices, axis))

    def rewrite(kept: Kept) -> Edit:
        alive = projection(kept.mask(labels), axis)
        renumbered = (
            (np.cumsum(alive) - 1)[indices][alive[indices]] if indices.ndim else (np.cumsum(alive) - 1)[indices]
        )
        return Edit(inputs={1: np.asarray(renumbered, call.array(1).dtype)})

    return Effect((output,), rewrite=rewrite, moves=_gather_moves(call, axis))


def _inserted(labels: Labels, axis: int, count: int) -> Labels:
    """An axis of size 1 replaced by ``count`` axes of size 1."""
    return labels.reshape(labels.shape[:axis] + (1,) * count + labels.shape[axis + 1 :])


def _gather_moves(call: Call, axis: int) -> tuple[Move, ...]:
    """The movement, where the indices are known."""
    if not call.is_constant(1):
        return ()
    indices, size = call.array(1).astype(np.int64), call.shape(0)[axis]

    def move(given: Labels) -> Labels:
        if given.shape[axis] == 1:
            return _inserted(given, axis, indices.ndim)
        return np.take(given, indices % size, axis)

    return (move,)


def pad(call: Call) -> Effect:
    """Pad-21; padded channels are channels without a producer, which go with their ties."""
    labels, shape = call.labels(0), call.shape(0)
    amounts = call.ints(1, "pads")
    axes = [a % len(shape) for a in (call.ints(3) or range(len(shape)))]
    if amounts is None:
        raise Unsupported("its amounts are computed at run time")
    pairs = {a: (amounts[k], amounts[k + len(axes)]) for k, a in enumerate(axes)}
    touched = [a for a in varied(labels) if any(pairs.get(a, (0, 0)))]
    if not touched:
        return Effect((labels,))
    if (
        len(touched) > 1
        or min(pairs[touched[0]]) < 0
        or call.attribute("mode", "constant") not in ("constant", b"constant")
    ):
        raise Unsupported("it crops, mirrors or repeats channels")
    axis = touched[0]
    vector, ties = call.slices(0, axis)
    before, after = (call.mint(n) for n in pairs[axis])
    output = on_axis(np.concatenate([before, vector, after]), axis, len(shape))
    filled = call.attribute("value", 0.0) if not call.has(1) else float(np.sum(call.array(2))) if call.has(2) else 0.0

    def rewrite(kept: Kept) -> Edit:
        entries = {
            axes.index(axis) + side * len(axes): int(kept.mask(p).sum()) for side, p in enumerate((before, after))
        }
        if call.has(1):
            return Edit(inputs={1: Entries(entries)})
        return Edit({"pads": _patched(amounts, entries)})

    return Effect((output,), tuple(ties), rewrite=rewrite, starts=(before, after) if filled else ())


def depth_to_space(call: Call) -> Effect:
    """DepthToSpace-13 (DCR and CRD): the r² channels of one output channel are tied."""
    block = int(call.attribute("blocksize"))
    vector, ties = call.slices(0, 1)
    crd = call.attribute("mode", "DCR") in ("CRD", b"CRD")
    members = vector.reshape(-1, block * block) if crd else vector.reshape(block * block, -1).T
    return _folded(call, members, ties)


def _folded(call: Call, members: Labels, ties: list[Pairs]) -> Effect:
    """Output channels that are each made of several input channels [C, n]."""
    minted = call.mint(members.shape[0])
    spread = np.broadcast_to(minted[:, None], members.shape)
    pair = (members.reshape(-1), spread.reshape(-1))
    return Effect((on_axis(minted, 1, len(call.output_shape())),), (*ties, pair), links=(Link(*pair),))


def space_to_depth(call: Call) -> Effect:
    """SpaceToDepth-13: each input channel appears blocksize² times."""
    block = int(call.attribute("blocksize"))
    labels, ties = kept_together(call, 0, 1)
    vector = labels.reshape(-1)
    output = on_axis(np.tile(vector, block * block), 1, labels.ndim) if vector.size > 1 else labels
    return Effect((output,), tuple(ties))


def shape_of(call: Call) -> Effect:
    """Shape-21 and Size-21 of a pruned tensor keep answering with the original sizes of its channel axes.

    So every piece of shape arithmetic computes what it always did; only where a size is used (Reshape, Expand,
    Slice …) is it replaced.
    """
    labels, shape = call.labels(0), call.shape(0)
    if call.op == "Size":
        if varied(labels):
            raise Unsupported("it counts the elements of all channels")
        return Effect((uniform(0, 0),))
    start, stop, _ = slice(call.attribute("start", 0), call.attribute("end")).indices(len(shape))
    entries = {a - start: shape[a] for a in varied(labels) if start <= a < stop}

    def rewrite(kept: Kept) -> Edit:
        return Edit(outputs={0: Entries({k: n for k, n in entries.items() if kept.count(labels, k + start, n) != n})})

    return Effect((uniform(0, 1),), rewrite=rewrite if entries else None)


def crop(call: Call) -> Effect:
    """Crop (experimental): a border of pixels is cut off."""
    labels = call.labels(0)
    if set(varied(labels)) - {1}:
        raise Unsupported("its channels lie on a cropped axis")
    return Effect((labels,))

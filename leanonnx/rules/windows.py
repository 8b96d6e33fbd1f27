"""Slice and Pad: operators that take a window of a tensor or add a border."""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, Mask, any_along, compact_ids, on_axis, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.assembly import window_move
from leanonnx.rules.call import Call, Edit, Effect, KeptChannels, ShapeEdit, Unsupported


def slice_(call: Call) -> Effect:
    """Take a window, with steps, on some axes.

    Flow: channels in the window pass through.
    Ties: none.
    Pins: nothing.
    Limits: starts, ends and steps are constants; a step other than 1 on the channel axis is replaced by a Gather, and
        then the node slices no other axis.
    Specification: ONNX Slice-13.
    """
    shape, channel_ids = call.shape(0), call.channel_ids(0)
    starts, ends = call.ints(1, "starts") or [], call.ints(2, "ends") or []
    axes = [a % len(shape) for a in (call.ints(3, "axes") or range(len(starts)))]
    steps = call.ints(4) or [1] * len(axes)
    windows = {
        a: slice(*slice(s, e, p).indices(shape[a])) for a, s, e, p in zip(axes, starts, ends, steps, strict=True)
    }
    touched = [a for a in axes if a in varied_axes(channel_ids)]
    if len(varied_axes(channel_ids)) > 1 and any(windows[a].step != 1 for a in touched):
        raise Unsupported("it takes every n-th channel of several axes", advice.EXPORT_AGAIN)
    stepped = [a for a in touched if windows[a].step != 1]
    if stepped and any(windows[a] != slice(0, shape[a], 1) for a in axes if a not in stepped[:1]):
        raise Unsupported("it takes every n-th channel and slices another axis too", advice.EXPORT_AGAIN)

    def move(channel_ids: ChannelIds) -> ChannelIds:
        for a, cut in windows.items():
            if channel_ids.shape[a] > 1:
                channel_ids = channel_ids[(slice(None),) * a + (_forward(cut),)]
        return channel_ids

    def rewrite(kept: KeptChannels) -> Edit:
        bounds = {axes.index(a): _kept_bounds(kept.mask(channel_ids), a, windows[a]) for a in touched}
        low, high = ({k: pair[side] for k, pair in bounds.items()} for side in (0, 1))
        if call.has_input(1):
            return Edit(inputs={1: ShapeEdit(low), 2: ShapeEdit(high)})
        return Edit({"starts": _replace_entries(starts, low), "ends": _replace_entries(ends, high)})

    output = compact_ids(move(channel_ids))
    if stepped:
        return Effect((output,), moves=(move,), needs_gather=True)
    return Effect((output,), rewrite=rewrite if touched else None, moves=(move,))


def _forward(window: slice) -> slice:
    """The slice of these indices; Python writes the end before the first element as None."""
    return slice(window.start, None if window.stop < 0 else window.stop, window.step)


def _replace_entries(values: list[int], entries: dict[int, int]) -> list[int]:
    return [entries.get(k, value) for k, value in enumerate(values)]


def _kept_bounds(mask: Mask, axis: int, window: slice) -> tuple[int, int]:
    alive = any_along(mask, axis)
    start = int(alive[: window.start].sum())
    return start, start + int(alive[window.start : window.stop].sum())


def pad(call: Call) -> Effect:
    """Add a border to a tensor, or crop one.

    Flow: channels pass through; padded channels have no producer, and are removed with their ties.
    Ties: none.
    Pins: nothing.
    Limits: the amounts are constants; on the channel axis the border is constant; a Gather replaces a Pad that crops
        channels, which then pads no other axis.
    Specification: ONNX Pad-21.
    """
    channel_ids, shape = call.channel_ids(0), call.shape(0)
    amounts = call.ints(1, "pads") or []
    axes = [a % len(shape) for a in (call.ints(3) or range(len(shape)))]
    pairs = {a: (amounts[k], amounts[k + len(axes)]) for k, a in enumerate(axes)}
    touched = [a for a in varied_axes(channel_ids) if any(pairs.get(a, (0, 0)))]
    if not touched:
        return Effect((channel_ids,))
    if len(touched) > 1:
        raise Unsupported("it pads several axes that hold channels", advice.EXPORT_AGAIN)
    if min(pairs[touched[0]]) < 0:
        return _crop(call, touched[0], pairs)
    if call.string_attribute("mode", "constant") != "constant":
        raise Unsupported("it mirrors or repeats channels", advice.EXPORT_AGAIN)
    axis = touched[0]
    vector, ties = call.channel_ids_along(0, axis)
    before, after = (call.mint(n) for n in pairs[axis])
    output = on_axis(np.concatenate([before, vector, after]), axis, len(shape))
    filled = (
        call.attribute("value", 0.0)
        if not call.has_input(1)
        else float(np.sum(call.array(2)))
        if call.has_input(2)
        else 0.0
    )

    def rewrite(kept: KeptChannels) -> Edit:
        entries = {
            axes.index(axis) + side * len(axes): int(kept.mask(p).sum()) for side, p in enumerate((before, after))
        }
        if call.has_input(1):
            return Edit(inputs={1: ShapeEdit(entries)})
        return Edit({"pads": _replace_entries(amounts, entries)})

    return Effect((output,), tuple(ties), rewrite=rewrite, starts=(before, after) if filled else ())


def _crop(call: Call, axis: int, pairs: dict[int, tuple[int, int]]) -> Effect:
    """Effect of negative amounts on the channel axis: a window of the channels."""
    if len(varied_axes(call.channel_ids(0))) > 1:
        raise Unsupported("it crops channels on one of several axes", advice.EXPORT_AGAIN)
    if any(any(pair) for a, pair in pairs.items() if a != axis) or max(pairs[axis]) > 0:
        raise Unsupported("it crops channels and pads as well", advice.EXPORT_AGAIN)
    before, after = pairs[axis]
    move = window_move(axis, -before, call.shape(0)[axis] + after)
    return Effect((compact_ids(move(call.channel_ids(0))),), moves=(move,), needs_gather=True)


WINDOW_RULES = {("", "Slice"): slice_, ("", "Pad"): pad}

"""Wrong versions of a rule's answer that suit every rule.  Each returns None where it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact_ids, uniform_ids, varied_axes
from leanonnx.rules.call import Call, Effect, Rule, Slice, Unsupported
from tests.rules.case import Wrong

Change = Callable[[Effect], Effect | None]


def rolled(channel_ids: ChannelIds) -> ChannelIds:
    """Labels moved by one along the first axis on which they change."""
    axes = varied_axes(compact_ids(channel_ids))
    return np.roll(channel_ids, 1, axes[0]) if axes else channel_ids


def rolled_outputs(effect: Effect) -> Effect | None:
    """Shift the channels of every output by one."""
    outputs = tuple(rolled(channel_ids) for channel_ids in effect.outputs)
    same = all(np.array_equal(a, b) for a, b in zip(outputs, effect.outputs, strict=True))
    return None if same else replace(effect, outputs=outputs)


def rolled_slices(effect: Effect) -> Effect | None:
    """Every constant is sliced at the neighbours of the right places."""
    if not any(varied_axes(compact_ids(f)) for s in effect.slices for f in s.factors):
        return None
    return replace(effect, slices=tuple(Slice(s.slot, tuple(rolled(f) for f in s.factors)) for s in effect.slices))


def unsliced(effect: Effect) -> Effect | None:
    """No constant is sliced."""
    return replace(effect, slices=()) if effect.slices else None


def untied(effect: Effect) -> Effect | None:
    """Nothing is tied."""
    pairs = [(np.asarray(a).reshape(-1), np.asarray(b).reshape(-1)) for a, b in effect.ties]
    return replace(effect, ties=()) if any(not np.array_equal(a, b) for a, b in pairs) else None


def unrewritten(effect: Effect) -> Effect | None:
    """Attributes and shape constants stay."""
    return replace(effect, rewrite=None) if effect.rewrite is not None else None


def unread(effect: Effect) -> Effect | None:
    """Readers outlive their channels."""
    return replace(effect, concat_slots=()) if effect.concat_slots else None


def unlinked(effect: Effect) -> Effect | None:
    """Nothing leads through the operator but kernels."""
    return replace(effect, fixed_edges=()) if effect.fixed_edges else None


def unmasked(effect: Effect) -> Effect | None:
    """The reference reads all channels that are reduced together, the removed ones too."""
    return replace(effect, reductions=()) if effect.reductions else None


def unpinned(effect: Effect) -> Effect | None:
    """Leave the control inputs of the operator unpinned."""
    return replace(effect, pins=()) if effect.pins else None


CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (rolled_outputs, rolled_slices, unsliced, untied, unrewritten, unread, unlinked, unmasked, unpinned)
}


def changed(rule: Rule, change: Change) -> Rule:
    """A rule whose answer is changed."""

    def wrong(call: Call) -> Effect:
        effect = rule(call)
        return change(effect) or effect

    return wrong


def altered(rule: Rule, wrong: Wrong) -> Rule:
    """A rule with a wrong answer of its own."""
    return lambda call: wrong(call, rule(call))


def passing(rule: Rule) -> Rule:
    """A rule that refuses nothing: the first operand's channels pass through, or an output gets new ones."""

    def wrong(call: Call) -> Effect:
        try:
            effect = rule(call)
        except Unsupported:
            return _through(call)
        return _through(call) if effect.pins else effect

    return wrong


def _through(call: Call) -> Effect:
    data = next(v.channel_ids for v in call.inputs if v is not None and v.channel_ids is not None)
    outputs = []
    for shape in call.output_shapes:
        size = shape or ()
        fits = data.ndim == len(size) and all(n in (1, m) for n, m in zip(data.shape, size, strict=True))
        outputs.append(data if fits else uniform_ids(int(call.mint(1)[0]), len(size)))
    return Effect(tuple(outputs))

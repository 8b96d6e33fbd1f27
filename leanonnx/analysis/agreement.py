"""Agreement of effects at several input sizes: an edit must be the same function of the kept channels at all of them.

A rule reads the shapes of one run.  If axes of the graph inputs are free, it is evaluated at several of their sizes,
and the effects have to agree:

1. the same number of new channels, the same kernels and the same slices of constants;
2. the same layout of output channels: along each axis each channel has the same share of the positions (the heads of
   a batch side by side), so that the kept size is a fixed fraction of the original size;
3. equal edits, or new sizes in proportion to the original size of the axis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from leanonnx.analysis.constants import ConstantUse
from leanonnx.analysis.trace import Answer
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import ChannelIds, varied_axes
from leanonnx.rules.call import Edit, KernelBlock, Select, ShapeEdit


def answers_agree(answers: Sequence[Answer]) -> bool:
    """Return True if the effects of one node agree at all sizes (cases 1 and 2)."""
    first, *others = answers
    return all(_same_answer(first, other) for other in others)


def _same_answer(one: Answer, other: Answer) -> bool:
    a, b = one.effect, other.effect
    return (
        len(a.outputs) == len(b.outputs)
        and all(has_same_layout(x, y) for x, y in zip(a.outputs, b.outputs, strict=True))
        and len(a.kernel_blocks) == len(b.kernel_blocks)
        and all(_same_kernels(x, y) for x, y in zip(a.kernel_blocks, b.kernel_blocks, strict=True))
        and len(one.constant_uses.uses) == len(other.constant_uses.uses)
        and all(_same_use(x, y) for x, y in zip(one.constant_uses.uses, other.constant_uses.uses, strict=True))
        and len(a.reductions) == len(b.reductions)
        and all(np.array_equal(x.channel_ids, y.channel_ids) for x, y in zip(a.reductions, b.reductions, strict=True))
        and a.needs_gather == b.needs_gather
    )


def has_same_layout(one: ChannelIds, other: ChannelIds) -> bool:
    """Return True if the channels of a tensor have the same layout at two sizes (case 2)."""
    if one.ndim != other.ndim:
        return False
    return np.array_equal(one, other) or all(
        _same_axis(one, other, axis) for axis in sorted({*varied_axes(one), *varied_axes(other)})
    )


def _same_axis(one: ChannelIds, other: ChannelIds, axis: int) -> bool:
    first, second = (Counter(_channel_sets(channel_ids, axis)) for channel_ids in (one, other))
    sizes = first.total(), second.total()
    return first.keys() == second.keys() and all(
        count * sizes[1] == second[line] * sizes[0] for line, count in first.items()
    )


def _channel_sets(channel_ids: ChannelIds, axis: int) -> list[bytes]:
    """Set of channels at each index of an axis, as bytes."""
    rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
    if rows.shape[1] == 1:
        return [row.tobytes() for row in rows]
    return [np.unique(row).tobytes() for row in rows]


def _same_kernels(one: KernelBlock, other: KernelBlock) -> bool:
    pairs = (
        (one.sources, other.sources),
        (one.destinations, other.destinations),
        (one.input_channel_ids, other.input_channel_ids),
    )
    return one.slot == other.slot and all(_equal(a, b) for a, b in pairs)


def _same_use(one: ConstantUse, other: ConstantUse) -> bool:
    places = (one.node, one.slot, one.constant) == (other.node, other.slot, other.constant)
    return (
        places
        and len(one.factors) == len(other.factors)
        and all(_same_factor(a, b) for a, b in zip(one.factors, other.factors, strict=True))
        and _equal(one.input_channel_ids, other.input_channel_ids)
        and _equal(one.computed, other.computed)
    )


def _same_factor(one: ChannelIds, other: ChannelIds) -> bool:
    """Return True if a constant is sliced in the same way: element by element if its size does not change."""
    return np.array_equal(one, other) if one.shape == other.shape else has_same_layout(one, other)


def _equal(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def common_edit(edits: Sequence[Edit], is_constant: Callable[[int], bool]) -> Edit | None:
    """First of several edits of one node if all sizes agree (case 3), else None.

    Args:
        edits: one edit for each size.
        is_constant: returns True if an input slot reads a constant, whose new entries must be fixed numbers.
    """
    first, *others = edits
    for other in others:
        if first.attributes != other.attributes or first.inputs.keys() != other.inputs.keys():
            return None
        if first.outputs.keys() != other.outputs.keys() or first.output_scales != other.output_scales:
            return None
        if not all(_same_change(change, other.inputs[k], is_constant(k)) for k, change in first.inputs.items()):
            return None
        if not all(_same_change(change, other.outputs[k], False) for k, change in first.outputs.items()):
            return None
    return first


def _same_change(one: Array | ShapeEdit | Select, other: Array | ShapeEdit | Select, is_constant: bool) -> bool:
    if isinstance(one, ShapeEdit) and isinstance(other, ShapeEdit):
        return _same_entries(one, other, is_constant)
    if isinstance(one, Select) and isinstance(other, Select):
        return one.axis == other.axis and np.array_equal(one.positions, other.positions)
    if isinstance(one, ShapeEdit | Select) or isinstance(other, ShapeEdit | Select):
        return False
    return np.array_equal(one, other)


def _same_entries(one: ShapeEdit, other: ShapeEdit, is_constant: bool) -> bool:
    """Return True for equal entries or, if the vector is computed, for sizes in proportion to the original ones."""
    if one.values.keys() != other.values.keys():
        return False
    for k, value in one.values.items():
        if k in one.original_sizes and k in other.original_sizes and not is_constant:
            if value * other.original_sizes[k] != other.values[k] * one.original_sizes[k]:
                return False
        elif value != other.values[k]:
            return False
    return True

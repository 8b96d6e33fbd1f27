"""Attention and rotary embeddings as single operators: heads are kept or removed as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact_ids, on_axis, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    Pin,
    Slice,
    TiePairs,
    Unsupported,
    mint_for_rows,
    pin_side_inputs,
)

PACKED_RANK, STACKED_RANK = 3, 4
"""Ranks of packed heads [batch, length, heads · width] and of stacked heads [batch, heads, length, width]."""
ANGLES = 2
"""Slot of RotaryEmbedding that holds sines or cosines [..., width / 2], in both of its domains."""


@dataclass(frozen=True)
class Heads:
    """Channel ids of the heads of keys and values [heads].

    ``queries_per_head`` is the number of query heads that share each of them.
    """

    channel_ids: ChannelIds
    queries_per_head: int = 1

    @property
    def queries(self) -> ChannelIds:
        """Channel id of each query head."""
        return np.repeat(self.channel_ids, self.queries_per_head)

    def channel_ids_for(self, shape: Sequence[int], count: int) -> ChannelIds:
        """Channel ids of a tensor of ``count`` heads."""
        each = self.channel_ids if count == self.channel_ids.size else self.queries
        if len(shape) == PACKED_RANK:
            return compact_ids(on_axis(np.repeat(each, shape[2] // count), 2, PACKED_RANK))
        return compact_ids(on_axis(each, 1, STACKED_RANK))


def attention(call: Call) -> Effect:
    """Attention: queries, keys, values, mask, past keys, past values, length; packed or stacked heads.

    Flow: the channels of each head lead to one channel of the output.
    Ties: all channels of a head in queries, keys and values; query heads that share keys and values.
    Pins: channels of a computed mask that lie along its lengths; computed sequence lengths.
    Limits: no past keys and values.  The scale stays that of the original width.
    Specification: ONNX Attention-24.
    """
    queries, keys = (_count(call, slot, name) for slot, name in ((0, "q_num_heads"), (1, "kv_num_heads")))
    if any(call.has_input(slot) for slot in (4, 5)):
        raise Unsupported("it reads past keys and values of all heads", advice.FIXED_INTERFACE)
    return _attention_effect(call, queries, keys, ("q_num_heads", "kv_num_heads"), mask=3, beside=(6,))


def multi_head_attention(call: Call) -> Effect:
    """Attention as fused by onnxruntime: queries, keys, values, bias, padding, mask, past keys and values.

    Flow: as Attention.
    Ties: as Attention; the bias is sliced with queries, keys and values.
    Pins: as Attention; a computed padding.
    Limits: queries, keys and values are separate tensors of rank 3, without past ones; the bias is a constant.
    Specification: com.microsoft.MultiHeadAttention-1.
    """
    if not all(call.has_input(slot) and len(call.shape(slot)) == PACKED_RANK for slot in range(3)):
        raise Unsupported("its queries, keys and values are packed or stacked", advice.EXPORT_AGAIN)
    if any(call.has_input(slot) for slot in range(6, 10)):
        raise Unsupported("it reads past keys and values of all heads", advice.FIXED_INTERFACE)
    heads = int(call.attribute("num_heads"))
    return _attention_effect(call, heads, heads, ("num_heads",), mask=5, beside=(4,), bias=3)


def _count(call: Call, slot: int, name: str) -> int:
    """Number of heads of an operand."""
    shape = call.shape(slot)
    return int(call.attribute(name)) if len(shape) == PACKED_RANK else shape[1]


def _attention_effect(
    call: Call, queries: int, keys: int, names: Sequence[str], mask: int, beside: Sequence[int], bias: int | None = None
) -> Effect:
    shared = queries // keys
    rows = [_rows(call, slot, count).reshape(keys, -1) for slot, count in ((0, queries), (1, keys), (2, keys))]
    heads = Heads(mint_for_rows(call, np.concatenate(rows, axis=1)), shared)
    pairs = [_pairs(own, heads.channel_ids) for own in rows]
    ties, fixed_edges = list(pairs), [FixedEdges(*pair) for pair in pairs]
    slices: list[Slice] = []
    pins: list[Pin] = []
    for slot in (mask, *beside):
        if call.has_input(slot):
            _add_mask(call, slot, heads, slot == mask, (ties, fixed_edges, slices, pins))
    if bias is not None and call.has_input(bias):
        if not call.is_constant(bias):
            raise Unsupported("its bias is computed at run time", advice.MAKE_CONSTANT)
        widths = (call.shape(slot)[2] // count for slot, count in ((0, queries), (1, keys), (2, keys)))
        slices.append(Slice(bias, (np.concatenate([np.repeat(heads.channel_ids, width) for width in widths]),)))

    def rewrite(kept: KeptChannels) -> Edit:
        left = int(kept.mask(heads.channel_ids).sum())
        sizes = {name: left * (shared if name == "q_num_heads" else 1) for name in names}
        return Edit({name: size for name, size in sizes.items() if name in call.attributes})

    output = heads.channel_ids_for(call.output_shape(), queries)
    past, scores = (heads.channel_ids_for((0,) * STACKED_RANK, count) for count in (keys, queries))
    outputs = (output, past, past, scores)[: len(call.outputs)]
    return Effect(
        outputs, tuple(ties), fixed_edges=tuple(fixed_edges), slices=tuple(slices), pins=tuple(pins), rewrite=rewrite
    )


def _rows(call: Call, slot: int, count: int) -> ChannelIds:
    """Channel ids of each head of an operand [heads, k]."""
    channel_ids = call.channel_ids(slot)
    if channel_ids.ndim not in (PACKED_RANK, STACKED_RANK):
        raise Unsupported(f"input {slot} has {channel_ids.ndim} axes", advice.EXPORT_AGAIN)
    axis = 2 if channel_ids.ndim == PACKED_RANK else 1
    moved = np.moveaxis(channel_ids, axis, 0)
    if moved.shape[0] == 1:
        return np.broadcast_to(moved.reshape(1, -1), (count, moved.size))
    return moved.reshape(count, -1)


def _pairs(rows: ChannelIds, heads: ChannelIds) -> TiePairs:
    """Distinct pairs of a channel and its head."""
    spread = np.broadcast_to(heads[:, None], rows.shape)
    channels, of_heads = np.unique(np.stack([rows.ravel(), spread.ravel()]), axis=1)
    return channels, of_heads


def _add_mask(
    call: Call,
    slot: int,
    heads: Heads,
    by_head: bool,
    effects: tuple[list[TiePairs], list[FixedEdges], list[Slice], list[Pin]],
) -> None:
    """Append the ties, edges, slices and pins of a mask that has one part for each head or one for all."""
    ties, fixed_edges, slices, pins = effects
    shape, axis = call.shape(slot), len(call.shape(slot)) - PACKED_RANK
    apart = by_head and axis >= 0 and shape[axis] > 1
    if call.is_constant(slot):
        slices += [Slice(slot, (on_axis(heads.queries, axis, len(shape)),))] if apart else []
        return
    channel_ids = call.channel_ids(slot)
    if apart:
        rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
        pair = _pairs(np.broadcast_to(rows, (heads.queries.size, rows.shape[1])), heads.queries)
        ties.append(pair)
        fixed_edges.append(FixedEdges(*pair))
        return
    own = np.unique(channel_ids)
    fixed_edges.append(FixedEdges(np.repeat(own, heads.channel_ids.size), np.tile(heads.channel_ids, own.size)))
    if varied_axes(channel_ids):
        pins.append(
            Pin(
                channel_ids=own,
                tensor=call.value(slot).name,
                reason=f"{call.title} is masked by it",
                advice=advice.MAKE_CONSTANT,
            )
        )


def rotary_embedding(call: Call) -> Effect:
    """Rotary position embedding: each head is rotated by angles that depend on its position; packed or stacked heads.

    Flow: the channels of each head lead to one channel of the output.
    Ties: all channels of a head.
    Pins: computed angles and positions.
    Limits: none.
    Specification: ONNX RotaryEmbedding-23, com.microsoft.RotaryEmbedding-1.
    """
    shape = call.shape(0)
    given = int(call.attribute("num_heads", 0))
    count = (given or shape[2] // (2 * call.shape(ANGLES)[-1])) if len(shape) == PACKED_RANK else shape[1]
    rows = _rows(call, 0, count)
    heads = Heads(mint_for_rows(call, rows))
    pair = _pairs(rows, heads.channel_ids)

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit({"num_heads": int(kept.mask(heads.channel_ids).sum())})

    effect = Effect(
        (heads.channel_ids_for(shape, count),),
        (pair,),
        fixed_edges=(FixedEdges(*pair),),
        rewrite=rewrite if given else None,
    )
    return pin_side_inputs(call, effect, "takes its angles or positions from it")


ATTENTION_RULES = {
    ("", "Attention"): attention,
    ("", "RotaryEmbedding"): rotary_embedding,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "RotaryEmbedding"): rotary_embedding,
}

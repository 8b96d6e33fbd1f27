"""Products of two computed tensors, and Einsum: attention and general contractions.

Indices are letters, as in Einsum; MatMul is ``…ik,…kj->…ij``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact_ids, on_axis, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Effect,
    FixedEdges,
    KernelBlock,
    Pin,
    Slice,
    TiePairs,
    Unsupported,
    mint_for_rows,
    pin_all,
)
from leanonnx.rules.weights import require_static_weight

INDEX_LETTERS = "abcdefghijklmnopqrstuvwxyz"
MATRIX_RANK = 2


def computed_matmul(call: Call, left: int, right: int, turned: bool = False) -> Effect:
    """Effect of MatMul-13 of two computed tensors; ``turned``: the right operand's matrices are transposed."""
    ranks = [len(call.shape(slot)) for slot in (left, right)]
    if min(ranks) < MATRIX_RANK:
        return pin_all(call, f"{call.title}: it multiplies two computed vectors")
    batch = INDEX_LETTERS[: max(ranks) - MATRIX_RANK]
    terms = tuple(
        batch[len(batch) + MATRIX_RANK - rank :] + tail for rank, tail in zip(ranks, ("yx", "xz"), strict=True)
    )
    if turned:
        terms = (terms[0], terms[1][:-MATRIX_RANK] + "zx")
    return contract(call, (left, right), terms, batch + "yz")


def contract(call: Call, slots: Sequence[int], terms: Sequence[str], result: str) -> Effect:
    """Effect of a contraction of two computed tensors, with one letter per index.

    1. One operand holds no channels, and the other none on a contracted index: each channel is combined with itself
       only and passes through; channels at the same position of all stacked matrices are tied.
    2. Both hold channels on an index that remains in the result (heads): all channels of a head are tied.
    3. Otherwise contracted channels would have to be removed from both operands at once: they are pinned.
    """
    channel_ids = [
        _by_letters(call.channel_ids(slot), term, call.shape(slot)) for slot, term in zip(slots, terms, strict=True)
    ]
    common = set(terms[0]) & set(terms[1])
    for one, other in ((0, 1), (1, 0)):
        mine, own = channel_ids[one], [letter for letter in terms[one] if letter not in common and letter in result]
        if mine and own and not channel_ids[other] and not mine.keys() & (common - set(result)):
            letter = next((letter for letter in own if letter in mine), own[-1])
            return _pass_through(call, slots[one], terms[one], letter, slots[other], result)
    heads = (channel_ids[0].keys() | channel_ids[1].keys()) & common & set(result)
    if not heads:
        return pin_all(call, f"{call.title}: it multiplies two computed tensors over their channels")
    return _by_heads(call, slots, terms, result, max(heads, key=lambda letter: _operands_with(channel_ids, letter)))


def _by_letters(channel_ids: ChannelIds, term: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Axis of each letter along which channels vary."""
    if len(term) != len(shape) or len(set(term)) != len(term):
        raise Unsupported("it repeats an index or leaves one out", advice.EXPORT_AGAIN)
    return {term[axis]: axis for axis in varied_axes(channel_ids)}


def _operands_with(channel_ids: Sequence[dict[str, int]], letter: str) -> int:
    return sum(letter in letters for letters in channel_ids)


def _pass_through(call: Call, slot: int, term: str, letter: str, weights: int, result: str) -> Effect:
    """Effect on the channels of one operand that lie on an index of its own, weighted by the other operand."""
    axis = term.index(letter)
    vector, ties = call.channel_ids_along(slot, axis)
    unique, inverse = np.unique(vector, return_inverse=True)
    minted = call.mint(unique.size)
    out = minted[inverse]
    channel_ids = np.moveaxis(call.channel_ids(slot), axis, 0)
    spread = np.broadcast_to(out.reshape(-1, *[1] * (channel_ids.ndim - 1))[: channel_ids.shape[0]], channel_ids.shape)
    pairs = np.unique(np.stack([channel_ids.ravel(), spread.ravel()]), axis=1)
    by = np.broadcast_to(call.channel_ids(weights).ravel()[:1], unique.shape)
    output = compact_ids(on_axis(out, result.index(letter), len(result)))
    return Effect(
        (output,), (*ties, (unique, minted)), fixed_edges=(FixedEdges(pairs[0], pairs[1]), FixedEdges(by, minted))
    )


def _by_heads(call: Call, slots: Sequence[int], terms: Sequence[str], result: str, head: str) -> Effect:
    """Effect with one output channel per head, tied to all channels of the head; an operand without heads is pinned."""
    sizes = [call.shape(slot)[term.index(head)] for slot, term in zip(slots, terms, strict=True)]
    rows = [
        _rows(call.channel_ids(slot), term.index(head), max(sizes)) for slot, term in zip(slots, terms, strict=True)
    ]
    heads = mint_for_rows(call, np.concatenate(rows, axis=1))
    ties: list[TiePairs] = []
    fixed_edges: list[FixedEdges] = []
    pins: list[Pin] = []
    for slot, own, size in zip(slots, rows, sizes, strict=True):
        spread = np.broadcast_to(heads[:, None], own.shape)
        pairs = np.unique(np.stack([own.ravel(), spread.ravel()]), axis=1)
        fixed_edges.append(FixedEdges(pairs[0], pairs[1]))
        if size > 1:
            ties.append((pairs[0], pairs[1]))
        elif own.shape[1] > 1:
            pins.append(
                Pin(
                    channel_ids=np.unique(own), tensor=call.value(slot).name, reason=f"{call.title}: all heads share it"
                )
            )
    output = compact_ids(on_axis(heads, result.index(head), len(result)))
    return Effect((output,), tuple(ties), fixed_edges=tuple(fixed_edges), pins=tuple(pins))


def _rows(channel_ids: ChannelIds, axis: int, size: int) -> ChannelIds:
    """Channels at each of the ``size`` indices of an axis [size, k]; an axis of size 1 is broadcast."""
    rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
    return np.broadcast_to(rows, (size, rows.shape[1]))


def einsum(call: Call) -> Effect:
    """Einsum of a computed tensor with a constant weight, or of two computed tensors.

    Flow: the elements of a constant weight are kernels from its contracted to its new indices (their multiply-adds
        are counted, the kernels are not); two computed tensors as MatMul.
    Ties: as MatMul.
    Pins: channels of any other form.
    Limits: two operands, an explicit result, no ellipsis, no repeated index in a term; a constant weight follows from
        constants of the file and shares only contracted indices with the tensor.
    Specification: ONNX Einsum-12.
    """
    equation = call.string_attribute("equation").replace(" ", "")
    if len(call.inputs) != MATRIX_RANK or "->" not in equation or "." in equation:
        raise Unsupported("it is not a contraction of two tensors with an explicit result", advice.EXPORT_AGAIN)
    left, result = equation.split("->")
    terms = left.split(",")
    constant = [slot for slot in (0, 1) if call.is_constant(slot)]
    if not constant:
        return contract(call, (0, 1), terms, result)
    (weight,) = constant
    return _weighted_contraction(call, 1 - weight, weight, terms, result)


def _weighted_contraction(call: Call, data: int, weight: int, terms: Sequence[str], result: str) -> Effect:
    """Effect of a contraction with a constant: channels pass through, or kernels map contracted to new indices."""
    channel_ids, term, stored = call.channel_ids(data), terms[data], terms[weight]
    axes = _by_letters(channel_ids, term, call.shape(data))
    summed = [letter for letter in term if letter not in result]
    fresh = [letter for letter in stored if letter not in term]
    if (axes or not fresh) and not axes.keys() & set(stored):
        if axes.keys() & set(summed):
            return pin_all(call, f"{call.title}: it sums over the channels")
        return Effect((_permute(channel_ids, term, result),))
    if set(stored) - set(fresh) != set(summed) or not fresh or axes.keys() - set(summed):
        reason = f"{call.title}: its constant is not a matrix from contracted to new indices"
        return pin_all(call, reason, advice.EXPORT_AGAIN)
    require_static_weight(call, weight)
    return _kernel_effect(call, data, weight, term, stored, summed, fresh, result)


def _permute(channel_ids: ChannelIds, term: str, result: str) -> ChannelIds:
    """Channel ids of a tensor with its indices permuted to the order of the result; new indices have size 1."""
    shared = [letter for letter in result if letter in term]
    lost = tuple(axis for axis, letter in enumerate(term) if letter not in result)
    order = [letter for letter in term if letter in result]
    turned = channel_ids.squeeze(lost).transpose([order.index(letter) for letter in shared])
    return turned.reshape([turned.shape[shared.index(letter)] if letter in shared else 1 for letter in result])


def _kernel_effect(
    call: Call, data: int, weight: int, term: str, stored: str, summed: list[str], fresh: list[str], result: str
) -> Effect:
    shape, channel_ids = call.shape(data), call.channel_ids(data)
    sizes = dict(zip(stored, call.shape(weight), strict=True))
    axes = [term.index(letter) for letter in summed]
    inner = np.transpose(channel_ids, [*axes, *(a for a in range(channel_ids.ndim) if a not in axes)]).reshape(
        [channel_ids.shape[a] for a in axes]
    )
    sources = np.broadcast_to(inner, [sizes[letter] for letter in summed])
    destinations = call.mint(math.prod(sizes[letter] for letter in fresh)).reshape([sizes[letter] for letter in fresh])
    inward, outward = _arrange(sources, summed, stored), _arrange(destinations, fresh, stored)
    order = [stored.index(letter) for letter in (*fresh, *summed)]
    block = KernelBlock(
        sources=sources.reshape(1, -1),
        destinations=destinations.reshape(1, -1),
        slot=weight,
        kernels=lambda: call.array(weight).transpose(order).reshape(1, destinations.size, sources.size),
        input_channel_ids=inward,
        positions=math.prod(shape) // sources.size,
        is_counted=False,
    )
    return Effect(
        (_arrange(destinations, fresh, result),), kernel_blocks=(block,), slices=(Slice(weight, (outward, inward)),)
    )


def _arrange(channel_ids: ChannelIds, letters: list[str], target: str) -> ChannelIds:
    """Channel ids with one axis per letter, arranged along the axes of a term."""
    order = sorted(range(len(letters)), key=lambda k: target.index(letters[k]))
    turned = channel_ids.transpose(order)
    sizes = {letters[k]: turned.shape[n] for n, k in enumerate(order)}
    return turned.reshape([sizes.get(letter, 1) for letter in target])


PRODUCT_RULES = {("", "Einsum"): einsum}

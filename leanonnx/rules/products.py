"""Products of two computed tensors, and Einsum: attention and plain contractions.

An index is named by a letter, as in Einsum; MatMul is ``…ik,…kj->…ij``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact, on_axis, varied
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
from leanonnx.rules.weights import require_held

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TWO = 2


def matmul(call: Call, left: int, right: int, turned: bool = False) -> Effect:
    """MatMul-13 of two computed tensors; ``turned``: the right operand's matrices are transposed."""
    ranks = [len(call.shape(slot)) for slot in (left, right)]
    if min(ranks) < TWO:
        return pin_all(call, f"{call.title}: it multiplies two computed vectors")
    batch = LETTERS[: max(ranks) - TWO]
    terms = tuple(batch[len(batch) + TWO - rank :] + tail for rank, tail in zip(ranks, ("yx", "xz"), strict=True))
    if turned:
        terms = (terms[0], terms[1][:-TWO] + "zx")
    return contracted(call, (left, right), terms, batch + "yz")


def contracted(call: Call, slots: Sequence[int], terms: Sequence[str], result: str) -> Effect:
    """A contraction of two computed tensors, written in letters.

    1. One operand holds no channels, and the other none on a contracted index: its channels are combined with
       themselves only, and pass through; those at the same place of all stacked matrices are tied.
    2. Channels of both lie on an index that both keep (heads): all that belong to one head are tied.
    3. Otherwise contracted channels would have to go from both at once: pinned.
    """
    channel_ids = [
        _by_letters(call.channel_ids(slot), term, call.shape(slot)) for slot, term in zip(slots, terms, strict=True)
    ]
    common = set(terms[0]) & set(terms[1])
    for one, other in ((0, 1), (1, 0)):
        mine, own = channel_ids[one], [letter for letter in terms[one] if letter not in common and letter in result]
        if mine and own and not channel_ids[other] and not mine.keys() & (common - set(result)):
            letter = next((letter for letter in own if letter in mine), own[-1])
            return _through(call, slots[one], terms[one], letter, slots[other], result)
    heads = (channel_ids[0].keys() | channel_ids[1].keys()) & common & set(result)
    if not heads:
        return pin_all(call, f"{call.title}: it multiplies two computed tensors over their channels")
    return _by_heads(call, slots, terms, result, max(heads, key=lambda letter: _varied_size(channel_ids, letter)))


def _by_letters(channel_ids: ChannelIds, term: str, shape: tuple[int, ...]) -> dict[str, int]:
    """The letters along which channels change, with the axis of each."""
    if len(term) != len(shape) or len(set(term)) != len(term):
        raise Unsupported("it repeats an index or leaves one out", advice.EXPORT)
    return {term[axis]: axis for axis in varied(channel_ids)}


def _varied_size(channel_ids: Sequence[dict[str, int]], letter: str) -> int:
    return sum(letter in found for found in channel_ids)


def _through(call: Call, slot: int, term: str, letter: str, weights: int, result: str) -> Effect:
    """The channels of one operand, on an index that the other has not, weighted by the other operand."""
    axis = term.index(letter)
    vector, ties = call.slices(slot, axis)
    unique, inverse = np.unique(vector, return_inverse=True)
    minted = call.mint(unique.size)
    out = minted[inverse]
    channel_ids = np.moveaxis(call.channel_ids(slot), axis, 0)
    spread = np.broadcast_to(out.reshape(-1, *[1] * (channel_ids.ndim - 1))[: channel_ids.shape[0]], channel_ids.shape)
    pairs = np.unique(np.stack([channel_ids.reshape(-1), spread.reshape(-1)]), axis=1)
    by = np.broadcast_to(call.channel_ids(weights).reshape(-1)[:1], unique.shape)
    output = compact(on_axis(out, result.index(letter), len(result)))
    return Effect(
        (output,), (*ties, (unique, minted)), fixed_edges=(FixedEdges(pairs[0], pairs[1]), FixedEdges(by, minted))
    )


def _by_heads(call: Call, slots: Sequence[int], terms: Sequence[str], result: str, head: str) -> Effect:
    """One channel per head in the output, tied to all channels of that head; an operand without heads is pinned."""
    sizes = [call.shape(slot)[term.index(head)] for slot, term in zip(slots, terms, strict=True)]
    rows = [
        _rows(call.channel_ids(slot), term.index(head), max(sizes)) for slot, term in zip(slots, terms, strict=True)
    ]
    heads = mint_for_rows(call, np.concatenate(rows, axis=1))
    ties: list[TiePairs] = []
    links: list[FixedEdges] = []
    pins: list[Pin] = []
    for slot, own, size in zip(slots, rows, sizes, strict=True):
        spread = np.broadcast_to(heads[:, None], own.shape)
        pairs = np.unique(np.stack([own.reshape(-1), spread.reshape(-1)]), axis=1)
        links.append(FixedEdges(pairs[0], pairs[1]))
        if size > 1:
            ties.append((pairs[0], pairs[1]))
        elif own.shape[1] > 1:
            pins.append(Pin(np.unique(own), call.value(slot).name, f"{call.title}: all heads share it"))
    output = compact(on_axis(heads, result.index(head), len(result)))
    return Effect((output,), tuple(ties), fixed_edges=tuple(links), pins=tuple(pins))


def _rows(channel_ids: ChannelIds, axis: int, size: int) -> ChannelIds:
    """Channels at each of the ``size`` indices of an axis [size, k]; one index stands for all where there is one."""
    rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
    return np.broadcast_to(rows, (size, rows.shape[1]))


def einsum(call: Call) -> Effect:
    """Einsum of a computed tensor with a constant weight, or of two computed tensors.

    Flow: the numbers of a constant weight are kernels from its contracted to its new indices (not counted as
        kernels, but as multiply-adds); two computed tensors as MatMul.
    Ties: as MatMul.
    Pins: channels of any other form.
    Limits: two operands, an explicit result, no ellipsis, no index twice in a term; a constant weight is a constant
        of the file and shares only contracted indices with the tensor.
    Specification: ONNX Einsum-12.
    """
    equation = call.text("equation", "").replace(" ", "")
    if len(call.inputs) != TWO or "->" not in equation or "." in equation:
        raise Unsupported("it is no contraction of two tensors with an explicit result", advice.EXPORT)
    left, result = equation.split("->")
    terms = left.split(",")
    constant = [slot for slot in (0, 1) if call.is_constant(slot)]
    if not constant:
        return contracted(call, (0, 1), terms, result)
    return _weighted(call, 1 - constant[0], constant[0], terms, result)


def _weighted(call: Call, data: int, weight: int, terms: Sequence[str], result: str) -> Effect:
    """A contraction with a constant: channels pass through, or kernels lead from contracted to new indices."""
    channel_ids, term, stored = call.channel_ids(data), terms[data], terms[weight]
    found = _by_letters(channel_ids, term, call.shape(data))
    summed = [letter for letter in term if letter not in result]
    fresh = [letter for letter in stored if letter not in term]
    if (found or not fresh) and not found.keys() & set(stored):
        if found.keys() & set(summed):
            return pin_all(call, f"{call.title}: it sums over the channels")
        return Effect((_moved(channel_ids, term, result),))
    if set(stored) - set(fresh) != set(summed) or not fresh or found.keys() - set(summed):
        reason = f"{call.title}: its constant is no plain matrix from contracted to new indices"
        return pin_all(call, reason, advice.EXPORT)
    require_held(call, weight)
    return _mixed(call, data, weight, term, stored, summed, fresh, result)


def _moved(channel_ids: ChannelIds, term: str, result: str) -> ChannelIds:
    """Labels of a tensor after its indices have been put into another order, with new ones of one channel each."""
    shared = [letter for letter in result if letter in term]
    lost = tuple(axis for axis, letter in enumerate(term) if letter not in result)
    order = [letter for letter in term if letter in result]
    turned = channel_ids.squeeze(lost).transpose([order.index(letter) for letter in shared])
    return turned.reshape([turned.shape[shared.index(letter)] if letter in shared else 1 for letter in result])


def _mixed(
    call: Call, data: int, weight: int, term: str, stored: str, summed: list[str], fresh: list[str], result: str
) -> Effect:
    shape, channel_ids = call.shape(data), call.channel_ids(data)
    sizes = dict(zip(stored, call.shape(weight), strict=True))
    axes = [term.index(letter) for letter in summed]
    inner = np.transpose(channel_ids, [*axes, *(a for a in range(channel_ids.ndim) if a not in axes)]).reshape(
        [channel_ids.shape[a] for a in axes]
    )
    sources = np.broadcast_to(inner, [sizes[letter] for letter in summed])
    targets = call.mint(math.prod(sizes[letter] for letter in fresh)).reshape([sizes[letter] for letter in fresh])
    inward, outward = _laid(sources, summed, stored), _laid(targets, fresh, stored)
    order = [stored.index(letter) for letter in (*fresh, *summed)]
    mix = KernelBlock(
        sources.reshape(1, -1),
        targets.reshape(1, -1),
        weight,
        lambda: call.array(weight).transpose(order).reshape(1, targets.size, sources.size),
        inward,
        positions=math.prod(shape) // sources.size,
        counted=False,
    )
    return Effect((_laid(targets, fresh, result),), kernel_blocks=(mix,), slices=(Slice(weight, (outward, inward)),))


def _laid(channel_ids: ChannelIds, letters: list[str], target: str) -> ChannelIds:
    """Labels with one axis per letter, laid along these letters of a term."""
    order = sorted(range(len(letters)), key=lambda k: target.index(letters[k]))
    turned = channel_ids.transpose(order)
    sizes = {letters[k]: turned.shape[n] for n, k in enumerate(order)}
    return turned.reshape([sizes.get(letter, 1) for letter in target])


RULES = {("", "Einsum"): einsum}

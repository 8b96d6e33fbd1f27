"""Steps of a random model that are small blocks: attention, recurrent layers, assignments to parts of a tensor."""

from __future__ import annotations

import math

import numpy as np

from tests.graph_builder import Builder, Tensor
from tests.graph_steps import Step, conv_of, divisors

LONGEST = 16
"""Tokens up to which attention is built."""


def sequence(b: Builder) -> Tensor | None:
    """A tensor of tokens [N, T, C]: an existing one or one made from an image."""
    x = b.pick(lambda t: len(t.shape) == 3 and t.axis == 2 and t.shape[1] <= LONGEST)
    if x is not None and b.chance(2):
        return x
    x = b.pick(lambda t: t.is_image and math.prod(t.shape[2:]) <= LONGEST)
    if x is None:
        return None
    (flat,) = b.node("Reshape", [x.name, b.ints(0, x.channels, -1)])
    length = math.prod(x.shape[2:])
    return b.put((x.shape[0], length, x.channels), "Transpose", [flat], 2, perm=[0, 2, 1])


def projected(b: Builder, x: Tensor, out: int) -> str:
    """A matrix on the last axis."""
    return b.node("MatMul", [x.name, b.weight((x.shape[-1], out), x.shape[-1], 1)])[0]


def attention(b: Builder) -> None:
    """Heads of queries, keys and values, from one matrix or from three."""
    x = sequence(b)
    if x is None:
        return
    heads, width = b.between(1, 3), b.between(1, 3)
    length = x.shape[1]
    if b.chance(2):
        target = b.ints(0, length, 3, heads, width)
        (split,) = b.node("Reshape", [projected(b, x, 3 * heads * width), target])
        (turned,) = b.node("Transpose", [split], perm=[2, 0, 3, 1, 4])
        q, k, v = (b.node("Gather", [turned, b.constant(np.array(part))], axis=0)[0] for part in range(3))
    else:
        parts = [projected(b, x, heads * width) for _ in range(3)]
        split_parts = [b.node("Reshape", [part, b.ints(0, length, heads, width)])[0] for part in parts]
        q, k, v = (b.node("Transpose", [part], perm=[0, 2, 1, 3])[0] for part in split_parts)
    mixed = heads_mixed(b, q, k, v, heads, length)
    (back,) = b.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    (joined,) = b.node("Reshape", [back, b.ints(0, length, heads * width)])
    y = Tensor(joined, (x.shape[0], length, heads * width), 2)
    out = b.between(2, 6)
    b.put((*x.shape[:2], out), "MatMul", [y.name, b.weight((heads * width, out), heads * width, 1)], 2)


def heads_mixed(b: Builder, q: str, k: str, v: str, heads: int, length: int) -> str:
    """Values [N, H, T, D] weighted by the scores of queries and keys."""
    if b.opset >= 12 and b.chance(3):
        (scores,) = b.node("Einsum", [q, k], equation="bhid,bhjd->bhij")
    else:
        if b.chance(3):
            norm = b.axes_node("ReduceL2", [k], [-1], 18, keepdims=1)
            (k,) = b.node("Div", [k, b.node("Add", [norm, b.constant(np.float32(0.5))])[0]])
        (turned,) = b.node("Transpose", [k], perm=[0, 1, 3, 2])
        (scores,) = b.node("MatMul", [q, turned])
    if b.chance(2):
        (scores,) = b.node("Add", [scores, b.constant(b.normal((1, heads, length, length)))])
    (weights,) = b.node("Softmax", [scores], axis=-1 if b.opset >= 13 else 3)
    return b.node("MatMul", [weights, v])[0]


def recurrent(b: Builder) -> None:
    x = sequence(b)
    if x is None:
        return
    op, hidden = b.one_of(("LSTM", "GRU", "RNN")), b.between(1, 3)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    (turned,) = b.node("Transpose", [x.name], perm=[1, 0, 2])
    weights = [b.constant(b.normal((1, rows, width), 0.4)) for width in (x.shape[2], hidden)]
    (found,) = b.node(op, [turned, *weights], hidden_size=hidden)
    flat = b.axes_node("Squeeze", [found], [1], 13)
    b.put((*x.shape[:2], hidden), "Transpose", [flat], 2, perm=[1, 0, 2])


def assigned_channels(b: Builder) -> None:
    """Some channels overwritten by others, or by constants."""
    x = b.image()
    if x is None or not b.fixed_batch or x.channels < 2:
        return
    count = b.between(1, x.channels)
    chosen = b.rng.permutation(x.channels)[:count]
    indices = np.stack(np.meshgrid(np.arange(x.shape[0]), chosen, indexing="ij"), -1)
    updates = b.constant(b.normal(x.resized(count))) if b.chance(3) else conv_of(b, x, count, 1, same=True).name
    b.put(x.shape, "ScatterND", [x.name, b.constant(indices), updates])


def scattered_pixels(b: Builder) -> None:
    """Elements written or read along a pixel axis, each by its own index."""
    x = b.image()
    if x is None or not b.fixed_batch:
        return
    axis = len(x.shape) - 1
    indices = b.constant(np.argsort(b.rng.random(x.shape), axis))
    if b.chance(2):
        b.put(x.shape, "GatherElements", [x.name, indices], axis=axis)
    else:
        updates = b.constant(b.normal(x.shape)) if b.chance(2) else conv_of(b, x, x.channels, 1, same=True).name
        b.put(x.shape, "ScatterElements", [x.name, indices, updates], axis=axis)


def gathered_by_table(b: Builder) -> None:
    """Channels picked by a table of indices, whose axes are joined again."""
    x = b.image()
    if x is not None and x.channels > 1:
        rows, columns = b.between(1, 3), b.between(1, 3)
        (picked,) = b.node("Gather", [x.name, b.constant(b.rng.integers(0, x.channels, (rows, columns)))], axis=1)
        b.put(x.resized(rows * columns), "Reshape", [picked, b.ints(0, rows * columns, *x.shape[2:])])


def cut_channels(b: Builder) -> None:
    """A negative border on the channel axis."""
    x = b.image()
    if x is not None and x.channels > 2:
        before, after = b.choose(2), b.choose(2)
        rest = [0] * (len(x.shape) - 2)
        b.put(x.resized(x.channels - before - after), "Pad", [x.name, b.ints(0, -before, *rest, 0, -after, *rest)])


def contracted(b: Builder) -> None:
    """Einsum of the channels with a matrix."""
    x = b.image()
    if x is not None and b.opset >= 12:
        out, pixels = b.between(2, 6), "hwd"[: len(x.shape) - 2]
        turned = b.chance(2)
        shape = (x.channels, out) if turned else (out, x.channels)
        equation = f"nc{pixels},{'co' if turned else 'oc'}->no{pixels}"
        weight = b.weight(shape, x.channels, int(turned))
        b.put(x.resized(out), "Einsum", [x.name, weight], equation=equation)


def best_pixels(b: Builder) -> None:
    x = b.image()
    if x is not None:
        count = b.between(1, x.shape[-1])
        values, _ = b.node("TopK", [x.name, b.ints(count)], 2, axis=-1)
        b.offer(Tensor(values, x.resized(count, len(x.shape) - 1)))


def few_groups(b: Builder) -> None:
    """A convolution of two or three wide groups, sometimes after a shuffle."""
    x = b.pick(lambda t: t.is_image and any(g in divisors(t.channels) and t.channels > g for g in (2, 3)))
    if x is not None:
        groups = next(g for g in (2, 3) if g in divisors(x.channels))
        y = conv_of(b, x, groups * b.between(2, 5), groups, same=True)
        if b.chance(2):
            conv_of(b, y, groups * b.between(1, 3), groups, same=True)


BLOCKS: list[Step] = [
    *(attention, attention, recurrent, assigned_channels, scattered_pixels, gathered_by_table, cut_channels),
    *(contracted, best_pixels, few_groups),
]

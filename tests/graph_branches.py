"""Steps of a random model that add a residual branch, a branch beside a convolution, or a gate."""

from __future__ import annotations

import numpy as np

from tests.graph_builder import Builder, Tensor
from tests.graph_steps import conv_of, divisors

DEEPEST = 2
"""Branches within branches."""


def residual(b: Builder) -> None:
    """z = x + F(x), or a difference."""
    x = b.image()
    if x is not None:
        joined(b, x, depth=0)


def beside_convolution(b: Builder) -> None:
    """z = W x + F(x), with or without a batch normalisation, strided or not."""
    x = b.image()
    if x is None or min(x.shape[2:]) < 2:
        return
    inner = len(b.tensors)
    stride, out = b.between(1, 2), b.between(1, 8)
    before = pointwise(b, x) if b.chance(3) else x
    kept = normalised(b, strided(b, x if b.chance(3) else before, out, stride))
    branch = body(b, strided(b, before, out, stride), out, DEEPEST)
    z = b.put(kept.shape, b.one_of(("Add", "Sum", "Sub")), either_order(b, kept, branch))
    forget_inner(b, inner, z)


def gated(b: Builder) -> None:
    """z = x · g(x), with one number of the gate for each channel."""
    x = b.image()
    if x is not None:
        inner = len(b.tensors)
        forget_inner(b, inner, gate(b, x))


BRANCHES = (residual, residual, beside_convolution, gated)


def joined(b: Builder, x: Tensor, depth: int) -> Tensor:
    """A tensor and a branch of it."""
    inner = len(b.tensors)
    branch = body(b, x, x.channels, depth)
    kept = b.put(x.shape, "Identity", [x.name]) if b.chance(6) else x
    return forget_inner(b, inner, b.put(x.shape, b.one_of(("Add", "Add", "Sum", "Sub")), either_order(b, kept, branch)))


def either_order(b: Builder, kept: Tensor, branch: Tensor) -> list[str]:
    names = [kept.name, branch.name]
    return names[::-1] if b.chance(2) else names


def body(b: Builder, x: Tensor, out: int, depth: int) -> Tensor:
    """One to three convolutions with what lies between them: normalisations, functions, gates, branches."""
    count = b.between(1, 3)
    for k in range(count):
        if b.chance(2):
            x = pointwise(b, normalised(b, x))
        if depth < DEEPEST and b.chance(5):
            x = gate(b, x) if b.chance(2) else joined(b, x, depth + 1)
        width = out if k == count - 1 else b.between(1, 8)
        common = divisors(int(np.gcd(width, x.channels)))
        x = conv_of(b, x, width, b.one_of(common), same=True)
    return normalised(b, x)


def gate(b: Builder, x: Tensor) -> Tensor:
    """Squeeze and excitation."""
    axes = list(range(2, len(x.shape)))
    if b.opset < 18 and b.chance(3):
        (name,) = b.node("ReduceMean", [x.name], axes=axes, keepdims=1)
    else:
        (name,) = b.node("GlobalAveragePool", [x.name])
    pooled = Tensor(name, (*x.shape[:2], *[1] * len(axes)))
    hidden = b.put(pooled.resized(3), "Relu", [conv_of(b, pooled, 3, 1, same=True).name])
    opened = conv_of(b, hidden, x.channels, 1, same=True)
    limited = b.put(opened.shape, b.one_of(("Sigmoid", "HardSigmoid")), [opened.name])
    return b.put(x.shape, "Mul", either_order(b, x, limited))


def strided(b: Builder, x: Tensor, out: int, stride: int) -> Tensor:
    """A convolution with one stride for all axes."""
    rank = len(x.shape) - 2
    size = b.one_of((1, 3))
    weight = b.weight((out, x.channels, *[size] * rank), x.channels * size**rank)
    bias = [b.vector(out)] if b.chance(2) else []
    sizes = [(n - 1) // stride + 1 for n in x.shape[2:]]
    pads = [size // 2] * (2 * rank)
    return b.put((x.shape[0], out, *sizes), "Conv", [x.name, weight, *bias], pads=pads, strides=[stride] * rank)


def normalised(b: Builder, x: Tensor) -> Tensor:
    """Batch normalisation, or none."""
    if not b.chance(3):
        return x
    n = x.channels
    scale, variance = (b.constant(b.rng.uniform(0.5, 1.5, n).astype(np.float32)) for _ in range(2))
    return b.put(x.shape, "BatchNormalization", [x.name, scale, b.vector(n), b.constant(b.normal((n,))), variance])


def pointwise(b: Builder, x: Tensor) -> Tensor:
    """Relu, or x · sigmoid(x), which is no branch."""
    if b.chance(3):
        return b.put(x.shape, "Mul", [x.name, b.node("Sigmoid", [x.name])[0]])
    return b.put(x.shape, b.one_of(("Relu", "Tanh", "LeakyRelu")), [x.name])


def forget_inner(b: Builder, first: int, z: Tensor) -> Tensor:
    """Leave to later steps the end of a block, and sometimes what lies within."""
    if not b.chance(5):
        del b.tensors[first:]
        b.offer(z)
    return z

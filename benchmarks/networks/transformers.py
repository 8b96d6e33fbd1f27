"""Networks with layer normalisation: two vision transformers, and a convolutional network after their model."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from .builder import Builder, Tensor

IMAGE: Final = (1, 3, 224, 224)

CONVNEXT_TINY: Final = ((96, 3), (192, 3), (384, 9), (768, 3))
"""(channels, blocks) of each stage."""

VIT_B: Final = (768, 12, 12, 3072)
"""Table 1, ViT-Base: (hidden size, layers, heads, MLP size)."""

SWIN_T: Final = ((96, 2, 3), (192, 2, 6), (384, 6, 12), (768, 2, 24))
"""Table 7, Swin-T: (dim, blocks, heads) of each stage."""
WINDOW: Final = 7


def convnext_tiny(b: Builder) -> None:
    """ConvNeXt-T (Liu 2022, arXiv:2201.03545)."""
    x = b.input(*IMAGE)
    for stage, (width, depth) in enumerate(CONVNEXT_TINY):
        if stage:
            x = b.conv(_layer_norm_2d(b, x), width, 2, 2, pad=0)
        else:
            x = _layer_norm_2d(b, b.conv(x, width, 4, 4, pad=0))
        for _ in range(depth):
            x = _convnext_block(b, x)
    b.classifier(_layer_norm_2d(b, b.global_pool(x)))


def _convnext_block(b: Builder, x: Tensor) -> Tensor:
    y = b.transpose(b.conv(x, x.width, 7, groups=x.width), 0, 2, 3, 1)
    y = _mlp(b, b.layer_norm(y, 1e-6), 4 * x.width)
    return b.add(b.scale(b.transpose(y, 0, 3, 1, 2), (x.width, 1, 1)), x)


def _layer_norm_2d(b: Builder, x: Tensor) -> Tensor:
    """Layer normalisation of the channels of N C H W, between two transpositions."""
    return b.transpose(b.layer_norm(b.transpose(x, 0, 2, 3, 1), 1e-6), 0, 3, 1, 2)


def _mlp(b: Builder, x: Tensor, hidden: int) -> Tensor:
    return b.linear(b.act(b.linear(x, hidden), "Gelu"), x.width)


def vit_b16(b: Builder, size: int = 224, patch: int = 16) -> None:
    """ViT-B/16 (Dosovitskiy 2021, arXiv:2010.11929)."""
    dim, depth, heads, hidden = VIT_B
    tokens = (size // patch) ** 2
    x = b.reshape(b.conv(b.input(1, 3, size, size), dim, patch, patch, pad=0), -1, dim, tokens)
    class_token = b.normal("weight", (1, 1, dim), 1.0)
    x = Tensor(b.op("Concat", class_token, b.transpose(x, 0, 2, 1), axis=1), dim)
    x = b.add_parameter(x, (1, tokens + 1, dim))
    for _ in range(depth):
        x = b.add(_attention(b, b.layer_norm(x, 1e-6), heads, tokens + 1), x)
        x = b.add(x, _mlp(b, b.layer_norm(x, 1e-6), hidden))
    x = b.layer_norm(x, 1e-6)
    x = Tensor(b.op("Gather", x, b.constant(0), axis=1), dim)
    b.output(b.gemm(x, 1000), 1, 1000)


def _attention(b: Builder, x: Tensor, heads: int, tokens: int) -> Tensor:
    """Self-attention over [N, tokens, dim]; queries, keys and values by Split of one projection."""
    depth = x.width // heads
    q, k, v = (b.reshape(part, -1, tokens, heads, depth) for part in b.chunk(b.linear(x, 3 * x.width), 3, axis=-1))
    logits = b.op("MatMul", b.transpose(q, 0, 2, 1, 3), b.transpose(k, 0, 2, 3, 1))
    weights = b.op("Softmax", b.op("Mul", logits, b.scalar(depth**-0.5)), axis=-1)
    y = Tensor(b.op("MatMul", weights, b.transpose(v, 0, 2, 1, 3)), x.width)
    return b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), -1, tokens, x.width), x.width)


def swin_t(b: Builder) -> None:
    """Swin-T (Liu 2021, arXiv:2103.14030)."""
    size = IMAGE[-1] // 4
    x = b.conv(b.input(*IMAGE), SWIN_T[0][0], 4, 4, pad=0)
    x = b.layer_norm(b.transpose(x, 0, 2, 3, 1))
    for stage, (dim, depth, heads) in enumerate(SWIN_T):
        if stage:
            x, size = _patch_merging(b, x, dim), size // 2
        for i in range(depth):
            shift = WINDOW // 2 if i % 2 and size > WINDOW else 0
            x = b.add(x, _window_attention(b, b.layer_norm(x), heads, size, shift))
            x = b.add(x, _mlp(b, b.layer_norm(x), 4 * dim))
    b.classifier(b.global_pool(b.transpose(b.layer_norm(x), 0, 3, 1, 2)))


def _patch_merging(b: Builder, x: Tensor, out: int) -> Tensor:
    """The pixels of each 2×2 square side by side, then a linear layer: [N, H, W, C] to [N, H/2, W/2, out]."""
    end = np.iinfo(np.int64).max
    rows = [b.slice(x, 1, i, end, 2) for i in range(2)]
    pixels = [b.slice(row, 2, j, end, 2) for j in range(2) for row in rows]
    return b.linear(b.layer_norm(b.concat(*pixels, axis=-1)), out, bias=False)


def _window_attention(b: Builder, x: Tensor, heads: int, size: int, shift: int) -> Tensor:
    """Self-attention within windows of [N, size, size, C], which are shifted cyclically.

    Queries, keys and values come by Gather from a tensor of rank 5.
    """
    dim, depth, tokens, windows = x.width, x.width // heads, WINDOW**2, (size // WINDOW) ** 2
    x = _partition(b, _roll(b, x, shift), size)
    qkv = b.transpose(b.reshape(b.linear(x, 3 * dim), -1, tokens, 3, heads, depth), 2, 0, 3, 1, 4)
    q, k, v = (b.op("Gather", qkv, b.constant(i), axis=0) for i in range(3))
    logits = b.op("MatMul", b.op("Mul", q, b.scalar(depth**-0.5)), b.op("Transpose", k, perm=[0, 1, 3, 2]))
    logits = b.op("Add", logits, _position_bias(b, heads))
    if shift:
        logits = b.op("Reshape", logits, b.constant([-1, windows, heads, tokens, tokens]))
        logits = b.op("Add", logits, b.constant(_shift_mask(size, shift), np.float32))
        logits = b.op("Reshape", logits, b.constant([-1, heads, tokens, tokens]))
    y = Tensor(b.op("MatMul", b.op("Softmax", logits, axis=-1), v), dim)
    y = b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), -1, tokens, dim), dim)
    return _roll(b, _merge(b, y, size), -shift)


def _roll(b: Builder, x: Tensor, shift: int) -> Tensor:
    """Cyclic shift by -shift along H and W of [N, H, W, C], each by two Slices and a Concat."""
    if not shift:
        return x
    end = np.iinfo(np.int64).max
    for axis in (1, 2):
        parts = (b.slice(x, axis, shift, end), b.slice(x, axis, 0, shift))
        x = x._replace(name=b.op("Concat", *parts, axis=axis))
    return x


def _partition(b: Builder, x: Tensor, size: int) -> Tensor:
    """[N, H, W, C] to [N · windows, tokens, C]."""
    n = size // WINDOW
    x = b.reshape(x, -1, n, WINDOW, n, WINDOW, x.width)
    return b.reshape(b.transpose(x, 0, 1, 3, 2, 4, 5), -1, WINDOW**2, x.width)


def _merge(b: Builder, x: Tensor, size: int) -> Tensor:
    """[N · windows, tokens, C] to [N, H, W, C]."""
    n = size // WINDOW
    x = b.reshape(x, -1, n, n, WINDOW, WINDOW, x.width)
    return b.reshape(b.transpose(x, 0, 1, 3, 2, 4, 5), -1, size, size, x.width)


def _position_bias(b: Builder, heads: int) -> str:
    """Learned bias [1, heads, tokens, tokens]: rows of the table [(2 · 7 - 1)², heads] by offset of the two tokens."""
    table = b.normal("weight", ((2 * WINDOW - 1) ** 2, heads), 0.04)
    rows = b.op("Gather", table, b.constant(_offsets().ravel()), axis=0)
    square = b.op("Reshape", rows, b.constant([WINDOW**2, WINDOW**2, heads]))
    return b.op("Unsqueeze", b.op("Transpose", square, perm=[2, 0, 1]), b.constant([0]))


def _offsets() -> npt.NDArray[np.int64]:
    """[tokens, tokens]: the number of the offset between two tokens of a window."""
    at = np.stack(np.divmod(np.arange(WINDOW**2), WINDOW))
    row, column = at[:, :, None] - at[:, None, :] + WINDOW - 1
    return np.asarray(row * (2 * WINDOW - 1) + column, np.int64)


def _shift_mask(size: int, shift: int) -> npt.NDArray[np.float32]:
    """[1, windows, 1, tokens, tokens]: -100 between tokens that only the cyclic shift brought together, else 0."""
    region = np.searchsorted([size - WINDOW, size - shift], np.arange(size), side="right")
    n = size // WINDOW
    image = (3 * region[:, None] + region).reshape(n, WINDOW, n, WINDOW)
    tokens = image.transpose(0, 2, 1, 3).reshape(n * n, WINDOW**2)
    apart = tokens[:, None, :] != tokens[:, :, None]
    return np.where(apart, np.float32(-100), np.float32(0))[None, :, None]

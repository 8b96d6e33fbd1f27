"""Attention and rotary positions as operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

MS = "com.microsoft"
NEW = (23, 24)
PAST = "past keys and values of all heads"
STACKED = (0, 2, 1, 3)


def operands(b: ModelBuilder, heads: int, shared: int, width: int, values: int, stacked: bool) -> list[str]:
    """Queries of length 3, keys and values of length 2."""
    if stacked:
        return [
            b.headed(heads * shared, width, 3, STACKED),
            b.headed(heads, width, 2, STACKED),
            b.headed(heads, values, 2, STACKED),
        ]
    return [b.tokens(heads * shared * width, 3), b.tokens(heads * width, 2), b.tokens(heads * values, 2)]


def attention(stacked: bool, mask: str = "", outputs: int = 1) -> Build:
    """Heads of queries that share keys and values, or not; values of another width."""

    def build(b: ModelBuilder) -> None:
        heads, shared, width = b.between(2, 3), b.between(1, 2), 2
        inputs = operands(b, heads, shared, width, b.between(1, 2), stacked)
        queries = heads * shared
        if mask == "for each head":
            inputs.append(b.const(b.normal(*b.one_of(((queries, 3, 2), (1, queries, 3, 2))))))
        elif mask == "for all":
            inputs.append(b.const(b.normal(*b.one_of(((3, 2), (1, 1, 3, 2))))))
        elif mask == "computed for each head":
            sums = b.node("ReduceSum", [b.headed(queries, 2, 3, STACKED), b.ints(-1)], keepdims=1)
            inputs.append(b.node("Concat", [sums, sums], axis=3))
        elif mask == "computed":
            inputs.append(b.plain(1, 3, 2))
        counts: dict[str, Any] = {} if stacked else {"q_num_heads": queries, "kv_num_heads": heads}
        causal = b.choose(2) if not mask else None
        b.subject("Attention", inputs, outputs, is_causal=causal, scale=b.one_of((None, 0.3)), **counts)

    return build


def attention_past(b: ModelBuilder) -> None:
    inputs = operands(b, 2, 1, 2, 2, True)
    past = [b.const(b.normal(b.batch, 2, 1, 2)) for _ in range(2)]
    b.free = False
    b.subject("Attention", [*inputs, "", *past], 3)
    b.reads = ["subject_0"]


def attention_masked_by_channels(b: ModelBuilder) -> None:
    """The mask has its channels along the keys."""
    inputs = operands(b, 2, 1, 2, 2, True)
    b.subject("Attention", [*inputs, b.node("Unsqueeze", [b.tokens(2, 3), b.ints(1)])])


def attention_lengths(b: ModelBuilder) -> None:
    """Lengths of the keys that depend on an input."""
    b.batch, b.free = 1, False
    inputs = operands(b, 2, 1, 2, 2, True)
    length = b.node("Add", [b.node("Reshape", [b.places(b.rows(1)), b.ints(1)]), b.ints(1)])
    b.subject("Attention", [*inputs, "", "", "", length])


def multi_head(*extra: str) -> Build:
    """With a bias for queries, keys and values, and a mask."""

    def build(b: ModelBuilder) -> None:
        heads, width, values = b.between(2, 3), 2, b.between(1, 2)
        inputs = operands(b, heads, 1, width, values, False)
        if "bias" in extra:
            inputs.append(b.const(b.normal(heads * (2 * width + values))))
        if "mask" in extra:
            inputs += [""] * (5 - len(inputs)) + [b.const(b.normal(1, b.one_of((1, heads)), 3, 2))]
        b.subject("MultiHeadAttention", inputs, domain=MS, num_heads=heads)

    return build


def multi_head_past(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    past = [b.const(b.normal(1, 2, 1, 2)) for _ in range(2)]
    inputs = [*operands(b, 2, 1, 2, 2, False), "", "", "", *past]
    b.subject("MultiHeadAttention", inputs, 3, domain=MS, num_heads=2)
    b.reads = ["subject_0"]


def multi_head_stacked(b: ModelBuilder) -> None:
    """Keys and values by heads."""
    b.free = False
    keys = [b.headed(2, 2, 2, STACKED) for _ in range(2)]
    b.subject("MultiHeadAttention", [b.tokens(4, 3), *keys], domain=MS, num_heads=2)


def multi_head_computed_bias(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    bias = b.node("Reshape", [b.rows(12), b.ints(12)])
    b.subject("MultiHeadAttention", [*operands(b, 2, 1, 2, 2, False), bias], domain=MS, num_heads=2)


def angles(b: ModelBuilder, length: int, width: int) -> list[str]:
    return [b.const(b.normal(length, width // 2)) for _ in range(2)]


def positions(b: ModelBuilder, length: int) -> str:
    return b.const(np.tile(np.arange(length, dtype=np.int64), (b.batch, 1)))


def rotary(stacked: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        b.free = False
        heads, width = b.between(2, 3), 4
        data = b.headed(heads, width, 3, STACKED) if stacked else b.tokens(heads * width, 3)
        given: dict[str, Any] = {} if stacked else {"num_heads": heads}
        inputs = [data, *angles(b, 5, width), positions(b, 3)]
        b.subject("RotaryEmbedding", inputs, interleaved=b.choose(2), **given)

    return build


def rotary_without_positions(b: ModelBuilder) -> None:
    """Angles for each sample and place."""
    b.free = False
    heads = b.between(2, 3)
    stacked = b.choose(2)
    data = b.headed(heads, 4, 3, STACKED) if stacked else b.tokens(heads * 4, 3)
    tables = [b.const(b.normal(b.batch, 3, 2)) for _ in range(2)]
    b.subject("RotaryEmbedding", [data, *tables], num_heads=None if stacked else heads)


def rotary_fused(b: ModelBuilder) -> None:
    """Heads follow from the number of angles, or are given."""
    b.free = False
    heads = b.between(2, 3)
    given: dict[str, Any] = b.one_of(({"num_heads": heads, "rotary_embedding_dim": 2}, {}))
    inputs = [b.tokens(heads * 4, 3), positions(b, 3), *angles(b, 5, 2 if given else 4)]
    b.subject("RotaryEmbedding", inputs, domain=MS, interleaved=b.choose(2), **given)


def rotary_computed(b: ModelBuilder, domain: str = "") -> None:
    """Positions that depend on an input."""
    b.batch, b.free = 1, False
    own = b.node("Cast", [b.node("Abs", [b.node("Sign", [b.rows(3)])])], to=TensorProto.INT64)
    data, tables = b.tokens(8, 3), angles(b, 5, 4)
    inputs = [data, own, *tables] if domain else [data, *tables, own]
    b.subject("RotaryEmbedding", inputs, domain=domain, num_heads=None if domain else 2)


CASES = [
    Case(
        "Attention",
        (
            Form("rows", attention(False), NEW, exact=False),
            Form("stacked", attention(True), NEW, exact=False),
            Form("mask for each head", attention(False, "for each head"), NEW, exact=False),
            Form("mask for all heads", attention(True, "for all"), NEW, exact=False),
            Form("computed mask", attention(False, "computed"), NEW, exact=False),
            Form("computed mask for each head", attention(True, "computed for each head"), NEW, exact=False),
            Form("computed lengths", attention_lengths, NEW[1:], exact=False),
        ),
        (
            Refusal("past", attention_past, PAST, NEW),
            Refusal("masked by channels", attention_masked_by_channels, "is masked by it", NEW),
        ),
    ),
    Case(
        "MultiHeadAttention",
        (
            Form("plain", multi_head(), exact=False),
            Form("bias", multi_head("bias"), exact=False),
            Form("bias and mask", multi_head("bias", "mask"), exact=False),
        ),
        (
            Refusal("past", multi_head_past, PAST),
            Refusal("stacked", multi_head_stacked, "are packed or stacked"),
            Refusal("computed bias", multi_head_computed_bias, "its bias is computed"),
        ),
        MS,
    ),
    Case(
        "RotaryEmbedding",
        (
            Form("rows", rotary(False), NEW, exact=False),
            Form("stacked", rotary(True), NEW, exact=False),
            Form("no positions", rotary_without_positions, NEW, exact=False),
        ),
        (Refusal("computed positions", rotary_computed, "takes its angles or positions from it", NEW),),
    ),
    Case(
        "RotaryEmbedding",
        (Form("rows", rotary_fused, exact=False),),
        (Refusal("computed positions", lambda b: rotary_computed(b, MS), "takes its angles or positions from it"),),
        MS,
    ),
]

"""Gemm, MatMul and their fused and quantised forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.integers import integers, scales, zeros
from tests.rules.model_builder import ModelBuilder

MS = "com.microsoft"

ALL = (11, 13, 17, 21)


def gemm(turned: bool, bias: str, op: str = "Gemm", domain: str = "") -> Build:
    """B as stored or turned; the bias one vector, one row, one number, or none."""

    def build(b: ModelBuilder) -> None:
        wide, out = b.between(2, 4), b.between(2, 5)
        shapes = {"vector": (out,), "row": (1, out), "one": (1,), "scalar": (), "rows": (b.batch, out)}
        c = [b.const(b.normal(*shapes[bias]))] if bias in shapes else [""] if bias == "left out" else []
        weight = b.const(b.normal(out, wide) if turned else b.normal(wide, out))
        extra: dict[str, Any] = {"activation": "LeakyRelu", "activation_alpha": 0.5} if domain else {}
        factors: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if b.chance(2) else {}
        b.subject(op, [b.rows(wide), weight, *c], domain=domain, transB=int(turned) or None, **factors, **extra)

    return build


def gemm_after_flatten(b: ModelBuilder) -> None:
    """Each channel is read at several places."""
    wide, out = b.between(2, 4), b.between(2, 3)
    flat = b.node("Flatten", [b.image(wide, 2, 1)], axis=1)
    b.subject("Gemm", [flat, b.const(b.normal(out, 2 * wide)), b.const(b.normal(out))], transB=1)


def gemm_computed_weight(b: ModelBuilder) -> None:
    b.subject("Gemm", [b.rows(3), b.node("Reshape", [b.rows(6), b.ints(3, -1)])])


def turned(b: ModelBuilder, channels: int) -> str:
    """[channels, batch], channels on the first axis."""
    b.whole = True
    return b.node("Transpose", [b.rows(channels)], perm=[1, 0])


def gemm_turned_input(op: str = "Gemm", domain: str = "") -> Build:
    """The data are stored turned, and the weight as it is or turned."""

    def build(b: ModelBuilder) -> None:
        wide, out, flip = b.between(2, 4), b.between(2, 4), b.choose(2)
        weight = b.const(b.normal(out, wide) if flip else b.normal(wide, out))
        extra: dict[str, Any] = {"activation": "LeakyRelu", "activation_alpha": 0.5} if domain else {}
        b.subject(op, [turned(b, wide), weight, b.const(b.normal(out))], domain=domain, transA=1, transB=flip, **extra)

    return build


def gemm_left(b: ModelBuilder) -> None:
    """W x, with x as it is stored or turned, and a bias for each row or none."""
    b.whole = True
    wide, out, flips = b.between(2, 4), b.between(2, 4), (b.choose(2), b.choose(2))
    weight = b.const(b.normal(wide, out) if flips[0] else b.normal(out, wide))
    data = b.rows(wide) if flips[1] else turned(b, wide)
    bias = b.one_of(([], [b.const(b.normal(out, 1))], [b.const(b.normal(1))]))
    b.subject("Gemm", [weight, data, *bias], transA=flips[0], transB=flips[1], alpha=b.one_of((None, 0.5)))


def gemm_beside_channels(b: ModelBuilder) -> None:
    """W x over the batch of each channel."""
    b.whole, b.batch, b.free = True, 2, False
    flip = b.choose(2)
    data = turned(b, b.between(2, 4)) if flip else b.rows(b.between(2, 4))
    b.subject("Gemm", [b.const(b.normal(3, 2)), data], transB=flip)


def fused_gemm_computed_weight(b: ModelBuilder) -> None:
    weight = b.node("Reshape", [b.rows(6), b.ints(3, -1)])
    b.subject("FusedGemm", [b.rows(3), weight], domain=MS, activation="Relu")


def gemm_computed_bias(b: ModelBuilder) -> None:
    b.subject("Gemm", [b.rows(3), b.const(b.normal(3, 4)), b.rows(4)])


def matmul(*lead: int) -> Build:
    def build(b: ModelBuilder) -> None:
        wide, out = b.between(2, 4), b.between(2, 5)
        b.subject("MatMul", [b.tokens(wide, *lead), b.const(b.normal(wide, out))])

    return build


def matmul_beside_channels(b: ModelBuilder) -> None:
    """The product acts on the pixels of each channel."""
    b.subject("MatMul", [b.image(b.between(2, 4), 3, 4), b.const(b.normal(4, 5))])


def matmul_values(b: ModelBuilder) -> None:
    """Attention without channels, times values."""
    b.subject("MatMul", [b.plain(3, 4), b.tokens(b.between(2, 4), 4)])


def matmul_values_left(b: ModelBuilder) -> None:
    """Values turned, times attention without channels."""
    values = b.node("Transpose", [b.tokens(b.between(2, 4), 4)], perm=[0, 2, 1])
    b.subject("MatMul", [values, b.plain(4, 3)])


def matmul_heads(b: ModelBuilder) -> None:
    """Queries times keys, by heads; of different lengths."""
    heads, width = b.between(2, 3), b.between(1, 2)
    b.subject("MatMul", [b.headed(heads, width, 3, (0, 2, 1, 3)), b.headed(heads, width, 2, (0, 2, 3, 1))])


def matmul_shared_keys(b: ModelBuilder) -> None:
    """All heads share the keys, which are pinned."""
    b.subject("MatMul", [b.headed(3, 2, 3, (0, 2, 1, 3)), b.headed(1, 2, 2, (0, 2, 3, 1))])


def matmul_head_values(b: ModelBuilder) -> None:
    """Attention without channels, the same for all heads, times values of several heads."""
    b.subject("MatMul", [b.plain(1, 3, 4), b.headed(2, b.between(2, 3), 4, (0, 2, 1, 3))])


def matmul_lower_rank(b: ModelBuilder) -> None:
    """Pixels of every channel mixed by one computed matrix, of a lower rank."""
    b.batch, b.free = 1, False
    matrix = b.node("Reshape", [b.plain(4, 3), b.ints(4, 3)])
    b.subject("MatMul", [b.image(b.between(2, 4), 3, 4), matrix])


def fused_matmul(b: ModelBuilder) -> None:
    """The constant may be stored turned."""
    wide, out, turned = b.between(2, 4), b.between(2, 5), b.choose(2)
    weight = b.const(b.normal(out, wide) if turned else b.normal(wide, out))
    b.subject("FusedMatMul", [b.tokens(wide, 3), weight], domain=MS, transB=turned, alpha=b.one_of((None, 0.5)))


def fused_matmul_heads(b: ModelBuilder) -> None:
    """Keys as they are computed, transposed by the product."""
    heads, width = b.between(2, 3), b.between(1, 2)
    operands = [b.headed(heads, width, length, (0, 2, 1, 3)) for length in (3, 2)]
    b.subject("FusedMatMul", operands, domain=MS, transB=1)


def fused_matmul_values(b: ModelBuilder) -> None:
    """The values are stored turned."""
    values = b.node("Transpose", [b.tokens(b.between(2, 4), 4)], perm=[0, 2, 1])
    b.subject("FusedMatMul", [b.plain(3, 4), values], domain=MS, transB=1)


def fused_matmul_turned(b: ModelBuilder) -> None:
    """Data that are stored turned, on the left of the constant or on the right."""
    wide, out, flip = b.between(2, 4), b.between(2, 5), b.choose(2)
    weight = b.const(b.normal(out, wide) if flip else b.normal(wide, out))
    if b.choose(2):
        b.subject("FusedMatMul", [b.image(wide, 3), weight], domain=MS, transA=1, transB=flip)
    else:
        b.subject("FusedMatMul", [weight, b.tokens(wide, 3)], domain=MS, transA=1 - flip, transB=1)


def fused_matmul_beside(b: ModelBuilder) -> None:
    """Data that are stored turned, with the channels beside the product."""
    b.subject("FusedMatMul", [b.tokens(b.between(2, 4), 4), b.const(b.normal(4, 2))], domain=MS, transA=1)


def fused_matmul_turned_queries(b: ModelBuilder) -> None:
    b.subject("FusedMatMul", [b.tokens(3, 4), b.tokens(3, 4)], domain=MS, transA=1)


def fused_matmul_batch(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    operands = [b.headed(2, 2, 2, (0, 2, 1, 3)) for _ in range(2)]
    b.subject("FusedMatMul", operands, domain=MS, transBatchA=1)


def fused_matmul_queries(b: ModelBuilder) -> None:
    b.subject("FusedMatMul", [b.tokens(3, 4), b.tokens(3, 4)], domain=MS, transB=1)


def matmul_queries(b: ModelBuilder) -> None:
    keys = b.node("Transpose", [b.tokens(3, 4)], perm=[0, 2, 1])
    b.subject("MatMul", [b.tokens(3, 4), keys])


def matmul_left(b: ModelBuilder) -> None:
    """W x, with axes of size 1 before W or without, on data of any rank."""
    wide, out = b.between(2, 4), b.between(2, 5)
    lead = [1] * b.choose(4)
    data = b.image(wide, b.between(1, 3))
    data = b.node("Unsqueeze", [data, b.ints(1)]) if b.chance(3) else data
    b.subject("MatMul", [b.const(b.normal(*lead, out, wide)), data])


def matmul_left_vector(b: ModelBuilder) -> None:
    """W x for one vector x."""
    b.batch, b.free, b.whole = 1, False, True
    wide, out = b.between(2, 4), b.between(2, 5)
    b.subject("MatMul", [b.const(b.normal(out, wide)), b.node("Reshape", [b.rows(wide), b.ints(-1)])])


def matmul_left_beside_channels(b: ModelBuilder) -> None:
    """The product acts on the pixels of each channel, in as many axes as the data or more."""
    lead = [1] * b.choose(3)
    b.subject("MatMul", [b.const(b.normal(*lead, 5, 4)), b.tokens(b.between(2, 4), 4)])


def matmul_one_of_a_stack(b: ModelBuilder) -> None:
    """A constant on the right with axes of size 1 before it."""
    wide, out = b.between(2, 4), b.between(2, 5)
    b.subject("MatMul", [b.tokens(wide, 3), b.const(b.normal(*[1] * b.between(1, 2), wide, out))])


def matmul_vector(b: ModelBuilder) -> None:
    b.subject("MatMul", [b.tokens(3, 4), b.const(b.normal(3))])


def matmul_stack(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    if b.choose(2):
        b.subject("MatMul", [b.tokens(3, 4), b.const(b.normal(2, 3, 2))])
    else:
        b.subject("MatMul", [b.const(b.normal(2, 2, 3)), b.image(3, 4)])


def matmul_weight_from_constants(b: ModelBuilder) -> None:
    parts = [b.initializer(b.normal(3, 2)) for _ in range(2)]
    b.subject("MatMul", [b.tokens(3, 4), b.node("Add", parts)])


def qlinear_matmul(per_channel: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        out = b.between(2, 4)
        inputs = [b.quantised(b.tokens(3, 4)), b.scalar(0.05), b.scalar(128, np.uint8), integers(b, 3, out)]
        inputs += [scales(b, out, per_channel), zeros(b, out, per_channel), b.scalar(0.1), b.scalar(128, np.uint8)]
        b.subject("QLinearMatMul", inputs)

    return build


def qlinear_matmul_left(b: ModelBuilder) -> None:
    """Data on the right, perhaps with a scale for each column, as many as there are rows."""
    out, wide = 3, b.between(2, 4)
    inputs = [integers(b, out, wide, kind=np.uint8), scales(b, out, False), zeros(b, out, False, np.uint8)]
    columns = b.choose(2)
    b.batch, b.free = (1, False) if columns else (b.batch, b.free)
    scale = b.const(b.normal(1, 1, 3) ** 2 + np.float32(0.05)) if columns else b.scalar(0.05)
    zero = b.const(np.full((1, 1, 3), 128, np.uint8)) if columns else b.scalar(128, np.uint8)
    inputs += [b.quantised(b.image(wide, 3)), scale, zero]
    b.subject("QLinearMatMul", [*inputs, b.scalar(0.1), b.scalar(128, np.uint8)])


def qlinear_matmul_computed(b: ModelBuilder) -> None:
    sides = [b.scalar(0.05), b.scalar(128, np.uint8)]
    keys = b.node("Transpose", [b.quantised(b.tokens(3, 4))], perm=[0, 2, 1])
    b.subject("QLinearMatMul", [b.quantised(b.tokens(3, 4)), *sides, keys, *sides, *sides])


def matmul_integer(per_channel: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        out = b.between(2, 4)
        zero = [b.scalar(128, np.uint8), *([zeros(b, out, True)] if per_channel else [])]
        b.subject("MatMulInteger", [b.quantised(b.tokens(3, 4)), integers(b, 3, out), *zero])

    return build


def matmul_integer_left(b: ModelBuilder) -> None:
    out, wide = b.between(2, 4), b.between(2, 4)
    weight = integers(b, out, wide, kind=np.uint8)
    sides = [zeros(b, out, False, np.uint8), b.scalar(128, np.uint8)]
    b.subject("MatMulInteger", [weight, b.quantised(b.image(wide, 3)), *sides])


def matmul_integer_computed(b: ModelBuilder) -> None:
    keys = b.node("Transpose", [b.quantised(b.tokens(3, 4))], perm=[0, 2, 1])
    b.subject("MatMulInteger", [b.quantised(b.tokens(3, 4)), keys])


def qgemm(b: ModelBuilder) -> None:
    sides = [b.scalar(0.05), b.scalar(128, np.uint8)]
    weight = [integers(b, 3, 4), scales(b, 4, False), zeros(b, 4, False)]
    b.subject("QGemm", [b.quantised(b.rows(3)), *sides, *weight, "", *sides], domain=MS)


TWO = "multiplies two computed tensors"

CASES = [
    Case(
        "Gemm",
        (
            *(Form(f"bias {bias}", gemm(False, bias), ALL) for bias in ("none", "vector", "row", "one", "scalar")),
            *(Form(f"turned, bias {bias}", gemm(True, bias)) for bias in ("left out", "vector", "rows")),
            Form("after Flatten", gemm_after_flatten),
            Form("turned input", gemm_turned_input(), ALL),
            Form("constant on the left", gemm_left, ALL),
            Form("beside the channels", gemm_beside_channels, ALL),
        ),
        (
            Refusal("computed weight", gemm_computed_weight, "its weight is computed from a graph input"),
            Refusal("computed bias", gemm_computed_bias, "adds a computed tensor"),
        ),
    ),
    Case(
        "FusedGemm",
        (
            Form("plain", gemm(False, "vector", "FusedGemm", MS)),
            Form("turned", gemm(True, "row", "FusedGemm", MS)),
            Form("turned input", gemm_turned_input("FusedGemm", MS)),
        ),
        (Refusal("computed weight", fused_gemm_computed_weight, "its weight is computed from a graph input"),),
        MS,
    ),
    Case(
        "MatMul",
        (
            Form("rows", matmul()),
            Form("tokens", matmul(3), ALL),
            Form("rank 4", matmul(2, 3)),
            Form("weight from constants", matmul_weight_from_constants),
            Form("beside the channels", matmul_beside_channels),
            Form("constant on the left", matmul_left, ALL),
            Form("constant on the left of a vector", matmul_left_vector),
            Form("constant on the left, beside the channels", matmul_left_beside_channels),
            Form("one of a stack", matmul_one_of_a_stack),
            Form("values", matmul_values, exact=False),
            Form("values on the left", matmul_values_left, exact=False),
            Form("computed matrix of rank 2", matmul_lower_rank, exact=False),
            Form("heads", matmul_heads, exact=False),
            Form("shared keys", matmul_shared_keys, exact=False, allows="all heads share it"),
            Form("values of several heads", matmul_head_values, exact=False, mates=True),
        ),
        (
            Refusal("queries and keys", matmul_queries, TWO),
            Refusal("vector", matmul_vector, "its constant is a vector"),
            Refusal("stack of matrices", matmul_stack, "its constant is a stack of matrices"),
        ),
    ),
    Case(
        "QLinearMatMul",
        (
            Form("plain", qlinear_matmul(False), exact=False),
            Form("per channel", qlinear_matmul(True), exact=False),
            Form("constant on the left", qlinear_matmul_left, exact=False),
        ),
        (Refusal("two computed", qlinear_matmul_computed, TWO),),
    ),
    Case(
        "MatMulInteger",
        (
            Form("plain", matmul_integer(False)),
            Form("per channel", matmul_integer(True)),
            Form("constant on the left", matmul_integer_left),
        ),
        (Refusal("two computed", matmul_integer_computed, TWO),),
    ),
    Case(
        "QGemm",
        (),
        (Refusal("any", qgemm, "a quantised Gemm is not pruned"),),
        MS,
        never="left as it is",
    ),
    Case(
        "FusedMatMul",
        (
            Form("constant", fused_matmul),
            Form("heads", fused_matmul_heads, exact=False),
            Form("turned values", fused_matmul_values, exact=False),
            Form("turned data", fused_matmul_turned),
            Form("turned data, beside the channels", fused_matmul_beside),
        ),
        (
            Refusal("turned queries", fused_matmul_turned_queries, "it transposes its left operand"),
            Refusal("turned batch", fused_matmul_batch, "it transposes its batch axes"),
            Refusal("queries and keys", fused_matmul_queries, TWO),
        ),
        MS,
    ),
]

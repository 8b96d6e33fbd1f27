"""Gemm, MatMul and their fused and quantised forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.bench import Bench
from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.integers import integers, scales, zeros

MS = "com.microsoft"

ALL = (11, 13, 17, 21)


def gemm(turned: bool, bias: str, op: str = "Gemm", domain: str = "") -> Build:
    """B as stored or turned; the bias one vector, one row, one number, or none."""

    def build(b: Bench) -> None:
        wide, out = b.between(2, 4), b.between(2, 5)
        shapes = {"vector": (out,), "row": (1, out), "one": (1,), "scalar": (), "rows": (b.batch, out)}
        c = [b.const(b.normal(*shapes[bias]))] if bias in shapes else [""] if bias == "left out" else []
        weight = b.const(b.normal(out, wide) if turned else b.normal(wide, out))
        extra: dict[str, Any] = {"activation": "LeakyRelu", "activation_alpha": 0.5} if domain else {}
        factors: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if b.chance(2) else {}
        b.subject(op, [b.rows(wide), weight, *c], domain=domain, transB=int(turned) or None, **factors, **extra)

    return build


def gemm_after_flatten(b: Bench) -> None:
    """Each channel is read at several places."""
    wide, out = b.between(2, 4), b.between(2, 3)
    flat = b.node("Flatten", [b.image(wide, 2, 1)], axis=1)
    b.subject("Gemm", [flat, b.const(b.normal(out, 2 * wide)), b.const(b.normal(out))], transB=1)


def gemm_computed_weight(b: Bench) -> None:
    b.subject("Gemm", [b.rows(3), b.node("Reshape", [b.rows(6), b.ints(3, -1)])])


def gemm_turned_input(b: Bench) -> None:
    b.batch, b.free = 2, False
    b.subject("Gemm", [b.rows(3), b.const(b.normal(2, 4))], transA=1)


def gemm_computed_bias(b: Bench) -> None:
    b.subject("Gemm", [b.rows(3), b.const(b.normal(3, 4)), b.rows(4)])


def fused_gemm_turned_input(b: Bench) -> None:
    b.batch, b.free = 2, False
    b.subject("FusedGemm", [b.rows(3), b.const(b.normal(2, 4))], domain=MS, transA=1, activation="Relu")


def matmul(*lead: int) -> Build:
    def build(b: Bench) -> None:
        wide, out = b.between(2, 4), b.between(2, 5)
        b.subject("MatMul", [b.tokens(wide, *lead), b.const(b.normal(wide, out))])

    return build


def matmul_beside_channels(b: Bench) -> None:
    """The product acts on the pixels of each channel."""
    b.subject("MatMul", [b.image(b.between(2, 4), 3, 4), b.const(b.normal(4, 5))])


def matmul_values(b: Bench) -> None:
    """Attention without channels, times values."""
    b.subject("MatMul", [b.plain(3, 4), b.tokens(b.between(2, 4), 4)])


def matmul_values_left(b: Bench) -> None:
    """Values turned, times attention without channels."""
    values = b.node("Transpose", [b.tokens(b.between(2, 4), 4)], perm=[0, 2, 1])
    b.subject("MatMul", [values, b.plain(4, 3)])


def matmul_heads(b: Bench) -> None:
    """Queries times keys, by heads; of different lengths."""
    heads, width = b.between(2, 3), b.between(1, 2)
    b.subject("MatMul", [b.headed(heads, width, 3, (0, 2, 1, 3)), b.headed(heads, width, 2, (0, 2, 3, 1))])


def matmul_shared_keys(b: Bench) -> None:
    """All heads share the keys, which are pinned."""
    b.subject("MatMul", [b.headed(3, 2, 3, (0, 2, 1, 3)), b.headed(1, 2, 2, (0, 2, 3, 1))])


def matmul_head_values(b: Bench) -> None:
    """Attention without channels, the same for all heads, times values of several heads."""
    b.subject("MatMul", [b.plain(1, 3, 4), b.headed(2, b.between(2, 3), 4, (0, 2, 1, 3))])


def matmul_lower_rank(b: Bench) -> None:
    """Pixels of every channel mixed by one computed matrix, of a lower rank."""
    b.batch, b.free = 1, False
    matrix = b.node("Reshape", [b.plain(4, 3), b.ints(4, 3)])
    b.subject("MatMul", [b.image(b.between(2, 4), 3, 4), matrix])


def fused_matmul(b: Bench) -> None:
    """The constant may be stored turned."""
    wide, out, turned = b.between(2, 4), b.between(2, 5), b.choose(2)
    weight = b.const(b.normal(out, wide) if turned else b.normal(wide, out))
    b.subject("FusedMatMul", [b.tokens(wide, 3), weight], domain=MS, transB=turned, alpha=b.one_of((None, 0.5)))


def fused_matmul_heads(b: Bench) -> None:
    """Keys as they are put out, turned by the product."""
    heads, width = b.between(2, 3), b.between(1, 2)
    operands = [b.headed(heads, width, length, (0, 2, 1, 3)) for length in (3, 2)]
    b.subject("FusedMatMul", operands, domain=MS, transB=1)


def fused_matmul_values(b: Bench) -> None:
    """The values are stored turned."""
    values = b.node("Transpose", [b.tokens(b.between(2, 4), 4)], perm=[0, 2, 1])
    b.subject("FusedMatMul", [b.plain(3, 4), values], domain=MS, transB=1)


def fused_matmul_turned(b: Bench) -> None:
    b.subject("FusedMatMul", [b.tokens(3, 4), b.const(b.normal(4, 2))], domain=MS, transA=1)


def fused_matmul_batch(b: Bench) -> None:
    b.batch, b.free = 2, False
    operands = [b.headed(2, 2, 2, (0, 2, 1, 3)) for _ in range(2)]
    b.subject("FusedMatMul", operands, domain=MS, transBatchA=1)


def fused_matmul_queries(b: Bench) -> None:
    b.subject("FusedMatMul", [b.tokens(3, 4), b.tokens(3, 4)], domain=MS, transB=1)


def matmul_queries(b: Bench) -> None:
    keys = b.node("Transpose", [b.tokens(3, 4)], perm=[0, 2, 1])
    b.subject("MatMul", [b.tokens(3, 4), keys])


def matmul_constant_left(b: Bench) -> None:
    b.subject("MatMul", [b.const(b.normal(2, 4)), b.tokens(3, 4)])


def matmul_stack(b: Bench) -> None:
    b.subject("MatMul", [b.tokens(3, 4), b.const(b.normal(b.batch, 3, 2))])


def matmul_weight_from_constants(b: Bench) -> None:
    parts = [b.initializer(b.normal(3, 2)) for _ in range(2)]
    b.subject("MatMul", [b.tokens(3, 4), b.node("Add", parts)])


def qlinear_matmul(per_channel: bool) -> Build:
    def build(b: Bench) -> None:
        out = b.between(2, 4)
        inputs = [b.quantised(b.tokens(3, 4)), b.scalar(0.05), b.scalar(128, np.uint8), integers(b, 3, out)]
        inputs += [scales(b, out, per_channel), zeros(b, out, per_channel), b.scalar(0.1), b.scalar(128, np.uint8)]
        b.subject("QLinearMatMul", inputs)

    return build


def qlinear_matmul_computed(b: Bench) -> None:
    sides = [b.scalar(0.05), b.scalar(128, np.uint8)]
    keys = b.node("Transpose", [b.quantised(b.tokens(3, 4))], perm=[0, 2, 1])
    b.subject("QLinearMatMul", [b.quantised(b.tokens(3, 4)), *sides, keys, *sides, *sides])


def matmul_integer(per_channel: bool) -> Build:
    def build(b: Bench) -> None:
        out = b.between(2, 4)
        zero = [b.scalar(128, np.uint8), *([zeros(b, out, True)] if per_channel else [])]
        b.subject("MatMulInteger", [b.quantised(b.tokens(3, 4)), integers(b, 3, out), *zero])

    return build


def matmul_integer_computed(b: Bench) -> None:
    keys = b.node("Transpose", [b.quantised(b.tokens(3, 4))], perm=[0, 2, 1])
    b.subject("MatMulInteger", [b.quantised(b.tokens(3, 4)), keys])


def qgemm(b: Bench) -> None:
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
        ),
        (
            Refusal("computed weight", gemm_computed_weight, "its weight is computed from a graph input"),
            Refusal("turned input", gemm_turned_input, "transposes its input"),
            Refusal("computed bias", gemm_computed_bias, "adds a computed tensor"),
        ),
    ),
    Case(
        "FusedGemm",
        (
            Form("plain", gemm(False, "vector", "FusedGemm", MS)),
            Form("turned", gemm(True, "row", "FusedGemm", MS)),
        ),
        (Refusal("turned input", fused_gemm_turned_input, "transposes its input"),),
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
            Form("values", matmul_values, exact=False),
            Form("values on the left", matmul_values_left, exact=False),
            Form("computed matrix of rank 2", matmul_lower_rank, exact=False),
            Form("heads", matmul_heads, exact=False),
            Form("shared keys", matmul_shared_keys, exact=False, allows="all heads share it"),
            Form("values of several heads", matmul_head_values, exact=False, mates=True),
        ),
        (
            Refusal("queries and keys", matmul_queries, TWO),
            Refusal("constant on the left", matmul_constant_left, "has its constant on the left"),
            Refusal("stack of matrices", matmul_stack, "its constant is a stack of matrices"),
        ),
    ),
    Case(
        "QLinearMatMul",
        (Form("plain", qlinear_matmul(False), exact=False), Form("per channel", qlinear_matmul(True), exact=False)),
        (Refusal("two computed", qlinear_matmul_computed, TWO),),
    ),
    Case(
        "MatMulInteger",
        (Form("plain", matmul_integer(False)), Form("per channel", matmul_integer(True))),
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
        ),
        (
            Refusal("turned left operand", fused_matmul_turned, "it transposes its left operand"),
            Refusal("turned batch", fused_matmul_batch, "it transposes its left operand or its batch axes"),
            Refusal("queries and keys", fused_matmul_queries, TWO),
        ),
        MS,
    ),
]

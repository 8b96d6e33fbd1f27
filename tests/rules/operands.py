"""Nodes that bring a tensor into the domain of an operator."""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto

from tests.rules.model_builder import ModelBuilder

Prepare = Callable[[ModelBuilder, str], str]


def as_is(b: ModelBuilder, x: str) -> str:
    del b
    return x


def positive(b: ModelBuilder, x: str) -> str:
    return b.node("Add", [b.bent(x), b.scalar(0.1)])


def above_one(b: ModelBuilder, x: str) -> str:
    return b.node("Add", [b.bent(x), b.scalar(1.1)])


def within_one(b: ModelBuilder, x: str) -> str:
    return b.node("Mul", [b.node("Tanh", [x]), b.scalar(0.9)])


def boolean(b: ModelBuilder, x: str) -> str:
    return b.node("Cast", [b.node("Relu", [x])], to=TensorProto.BOOL)


def integer(b: ModelBuilder, x: str) -> str:
    return b.node("Cast", [b.node("Mul", [x, b.scalar(9.0)])], to=TensorProto.INT32)


def coarse(b: ModelBuilder, x: str) -> str:
    return b.node("Round", [x])


def with_nan(b: ModelBuilder, x: str) -> str:
    return b.node("Log", [x])


def with_infinity(b: ModelBuilder, x: str) -> str:
    return b.node("Reciprocal", [b.node("Relu", [x])])


PREPARED: dict[str, Prepare] = {
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal", "Div", "Pow"), positive),
    **dict.fromkeys(("Asin", "Acos", "Atanh"), within_one),
    **dict.fromkeys(("Not", "And", "Or", "Xor"), boolean),
    **dict.fromkeys(("BitwiseNot", "BitwiseAnd", "BitwiseOr", "BitwiseXor"), integer),
    "Acosh": above_one,
    "Equal": coarse,
    "IsNaN": with_nan,
    "IsInf": with_infinity,
}

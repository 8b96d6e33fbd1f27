"""Operators that act on each position of one tensor by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.rules.case import ONE, Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder
from tests.rules.operands import PREPARED, as_is

MS = "com.microsoft"

ALL = (11, 13, 17, 21)

ALONE = "it reads one tensor, position by position"


def unary(op: str, domain: str = "", **attributes: Any) -> Build:
    """On images and on rows, whatever the rank."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        data = b.tokens(channels, 3) if b.chance(3) else b.ranked(channels, 2, 3, 4)
        data = PREPARED.get(op, as_is)(b, data)
        b.subject(op, [data], domain=domain, **(attributes if b.chance(2) else {}))

    return build


def on_image(op: str, **attributes: Any) -> Build:
    """Operators whose attributes have no default."""

    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.image(b.between(2, 4), 2, 3)], **attributes)

    return build


def clip(b: ModelBuilder) -> None:
    """Bounds as constants, either may be left out."""
    low, high = b.one_of(("", b.scalar(-1.5))), b.one_of((None, b.scalar(1.0)))
    b.subject("Clip", [b.image(b.between(2, 4), 2, 3), low, *([high] if high else [])])


def clip_computed(b: ModelBuilder) -> None:
    b.subject("Clip", [b.image(3, 2, 3), "", b.number(1.0)])


def cast(b: ModelBuilder) -> None:
    to = b.one_of((TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.FLOAT))
    b.subject("Cast", [b.image(b.between(2, 4), 2, 3)], to=to)


def cast_like(b: ModelBuilder) -> None:
    kind = b.one_of((np.float64, np.int32))
    b.subject("CastLike", [b.image(b.between(2, 4), 2, 3), b.scalar(0, kind)])


def cast_like_computed(b: ModelBuilder) -> None:
    b.subject("CastLike", [b.image(3, 2, 3), b.rows(3)])


def dropout(b: ModelBuilder) -> None:
    """The mask as a second output, or not."""
    data = b.image(b.between(2, 4), 2, 3)
    ratio = [b.scalar(0.3)] if b.opset > 11 and b.chance(2) else []
    outputs = b.between(1, 2)
    names = b.subject("Dropout", [data, *ratio], outputs)
    b.reads = names


def qlinear(op: str, **attributes: Any) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.quantised(b.image(b.between(2, 4), 2, 3))
        sides = [b.scalar(0.05), b.scalar(128, np.uint8), b.scalar(0.04), b.scalar(120, np.uint8)]
        b.subject(op, [data, *sides], domain=MS, **attributes)

    return build


def qlinear_computed_scale(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.quantised(b.image(3, 2, 3))
        sides = [b.scalar(128, np.uint8), b.scalar(0.04), b.scalar(120, np.uint8)]
        b.subject(op, [data, b.number(0.05), *sides], domain=MS)

    return build


def prelu(form: str) -> Build:
    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        shapes = {"channel": (channels, 1, 1), "one": (1,), "full": (channels, 2, 3), "pixel": (1, 2, 3)}
        b.subject("PRelu", [b.image(channels, 2, 3), b.const(b.normal(*shapes[form]))])

    return build


def prelu_computed(b: ModelBuilder) -> None:
    b.subject("PRelu", [b.image(3, 2, 3), b.image(3, 1, 1)])


def bias_gelu(b: ModelBuilder) -> None:
    channels = b.between(2, 4)
    b.subject("BiasGelu", [b.tokens(channels, 3), b.const(b.normal(channels))], domain=MS)


def image_scaler(b: ModelBuilder) -> None:
    data = b.image(b.between(2, 4), 2, 3)
    (scaled,) = b.subject("ImageScaler", [b.plain(2, 2, 3)], scale=2.0, bias=[0.5, -0.5])
    b.reads = [data, scaled]


def image_scaler_channels(b: ModelBuilder) -> None:
    b.subject("ImageScaler", [b.image(3, 2, 3)], scale=2.0, bias=[0.5, -0.5, 1.0])


SINCE: dict[str, tuple[int, ...]] = {
    "Celu": (12, 13, 21),
    "HardSwish": (15, 17, 21),
    "Mish": (18, 21),
    "Gelu": (20, 21),
    "Swish": (24,),
    "BitwiseNot": (18, 21),
    **dict.fromkeys(("Affine", "ScaledTanh", "ParametricSoftplus"), (9,)),
}

PLAIN = (
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Softplus", "Softsign", "HardSigmoid"),
    *("HardSwish", "Mish", "Gelu", "Swish", "ThresholdedRelu", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal"),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Erf", "Identity"),
)

STEPPED = ("Floor", "Ceil", "Round", "Sign", "Not", "BitwiseNot", "IsNaN", "IsInf")

CASES = [
    *(Case(op, (Form("any rank", unary(op), SINCE.get(op, ALL)),), whole=ALONE) for op in PLAIN),
    *(Case(op, (Form("any rank", unary(op), SINCE.get(op, ALL), exact=False),), whole=ALONE) for op in STEPPED),
    Case("Shrink", (Form("any rank", unary("Shrink", lambd=0.2, bias=0.1), exact=False),), whole=ALONE),
    Case("Affine", (Form("image", on_image("Affine", alpha=2.0, beta=0.5), (9,)),), whole=ALONE),
    Case("ScaledTanh", (Form("image", on_image("ScaledTanh", alpha=2.0, beta=0.5), (9,)),), whole=ALONE),
    Case(
        "ParametricSoftplus",
        (Form("image", on_image("ParametricSoftplus", alpha=2.0, beta=0.5), (9,), exact=False),),
        whole=ALONE,
    ),
    Case(
        "Clip",
        (Form("constant bounds", clip, ALL, exact=False),),
        (Refusal("computed bound", clip_computed, "reads it as a parameter"),),
        harmless={"unpinned": ONE},
    ),
    Case("Cast", (Form("any type", cast, ALL),), whole=ALONE),
    Case(
        "CastLike",
        (Form("constant", cast_like, (15, 17, 21)),),
        (Refusal("computed", cast_like_computed, "reads it as a parameter", (15, 17, 21)),),
        harmless={"unpinned": "only its type is read"},
    ),
    Case("Dropout", (Form("with a mask", dropout, ALL, exact=False),), whole="it does nothing outside of training"),
    *(
        Case(
            op,
            (Form("image", qlinear(op), exact=False),),
            (Refusal("computed scale", qlinear_computed_scale(op), "reads it as a parameter"),),
            MS,
            harmless={"unpinned": ONE},
        )
        for op in ("QLinearSigmoid", "QLinearLeakyRelu")
    ),
    *(Case(op, (Form("any rank", unary(op, MS)),), domain=MS, whole=ALONE) for op in ("QuickGelu", "Gelu")),
    Case(
        "PRelu",
        tuple(Form(f"slope per {form}", prelu(form), ALL, exact=False) for form in ("channel", "one", "full", "pixel")),
        (Refusal("computed slope", prelu_computed, "the slope is computed at run time"),),
    ),
    Case("BiasGelu", (Form("tokens", bias_gelu),), domain=MS, whole="it is an addition"),
    Case(
        "ImageScaler",
        (Form("no channels", image_scaler, (9,), beside=True),),
        (Refusal("channels", image_scaler_channels, "its bias per channel is an attribute", (9,)),),
    ),
]

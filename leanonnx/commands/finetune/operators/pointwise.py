"""Torch functions of operators that act on each position by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import onnx
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor, together

TYPES: Mapping[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
}


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one input and no attributes."""
    return lambda call: function(call.x())


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two inputs that are broadcast."""

    def run(call: Call) -> Tensor:
        a, b = together(call.x(0), call.x(1))
        return function(a, _legacy(call, a, b))

    return run


def _legacy(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The second operand as operator sets below 7 broadcast it: from ``axis`` on."""
    axis = call.attr("axis")
    if call.opset >= 7 or axis is None or not call.attr("broadcast", 0):
        return b
    return b.reshape(*b.shape, *[1] * (a.ndim - axis - b.ndim))


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs that are broadcast."""
    return lambda call: reduce(function, call.given)


def divided(a: Tensor, b: Tensor) -> Tensor:
    """Quotient; that of integers is cut off towards 0."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(call: Call) -> Tensor:
    low, high = (
        (call.attr("min"), call.attr("max"))
        if call.opset < 11
        else tuple(None if call.get(k) is None else call.x(k).reshape(()).to(call.x().device) for k in (1, 2))
    )
    x = call.x()
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def _cast(call: Call) -> Tensor:
    kind = call.attr("to")
    if isinstance(kind, str):
        kind = onnx.TensorProto.DataType.Value(kind)
    if kind not in TYPES:
        raise call.refused(f"it casts to {onnx.TensorProto.DataType.Name(kind)}")
    return call.x().to(TYPES[kind])


def _prelu(call: Call) -> Tensor:
    x, slope = call.x(), call.x(1)
    if call.opset < 7 and slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x >= 0, x, x * slope)


def _where(call: Call) -> Tensor:
    condition, a, b = together(call.x(0), call.x(1), call.x(2))
    return torch.where(condition, a, b)


def _mod(call: Call) -> Tensor:
    a, b = together(call.x(0), call.x(1))
    return torch.fmod(a, b) if call.attr("fmod", 0) else torch.remainder(a, b)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call.x(), approximate=call.attr("approximate", "none"))


def _is_infinite(call: Call) -> Tensor:
    x = call.x()
    up, down = call.attr("detect_positive", 1), call.attr("detect_negative", 1)
    return (torch.isposinf(x) & bool(up)) | (torch.isneginf(x) & bool(down))


def _shrink(call: Call) -> Tensor:
    x, limit, bias = call.x(), call.attr("lambd", 0.5), call.attr("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


def _power(call: Call) -> Tensor:
    a, b = together(call.x(0), call.x(1))
    result = torch.pow(a, _legacy(call, a, b).to(a.dtype) if a.is_floating_point() else b)
    return result.to(a.dtype)


def _dropout(call: Call) -> tuple[Tensor, Tensor]:
    return call.x(), torch.ones_like(call.x(), dtype=torch.bool)


def _swish(call: Call) -> Tensor:
    return call.x() * torch.sigmoid(call.attr("alpha", 1.0) * call.x())


def _threshold(call: Call) -> Tensor:
    x = call.x()
    return torch.where(x > call.attr("alpha", 1.0), x, torch.zeros_like(x))


def _image_scaler(call: Call) -> Tensor:
    bias = torch.tensor(call.attr("bias", []), device=call.x().device)
    return call.x() * call.attr("scale", 1.0) + bias[:, None, None]


def _hard_sigmoid(call: Call) -> Tensor:
    return torch.clamp(call.attr("alpha", 0.2) * call.x() + call.attr("beta", 0.5), 0, 1)


def _selu(call: Call) -> Tensor:
    alpha, gamma = call.attr("alpha", 1.6732632423543772), call.attr("gamma", 1.0507009873554805)
    return gamma * F.elu(call.x(), alpha)


def _quick_gelu(call: Call) -> Tensor:
    return call.x() * torch.sigmoid(call.attr("alpha", 1.702) * call.x())


def _shift(call: Call) -> Tensor:
    a, b = call.x(0), call.x(1)
    return torch.bitwise_left_shift(a, b) if call.attr("direction") == "LEFT" else torch.bitwise_right_shift(a, b)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Erf": torch.erf,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "IsNaN": torch.isnan,
    "Identity": lambda x: x,
}
_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": divided,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "Less": torch.lt,
    "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_OTHERS: dict[str, Operator] = {
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda call: call.x().to(call.x(1).dtype),
    "PRelu": _prelu,
    "Where": _where,
    "Mod": _mod,
    "Gelu": _gelu,
    "IsInf": _is_infinite,
    "Shrink": _shrink,
    "Pow": _power,
    "BitShift": _shift,
    "Dropout": _dropout,
    "Swish": _swish,
    "ThresholdedRelu": _threshold,
    "ImageScaler": _image_scaler,
    "HardSigmoid": _hard_sigmoid,
    "Selu": _selu,
    "LeakyRelu": lambda call: F.leaky_relu(call.x(), call.attr("alpha", 0.01)),
    "Elu": lambda call: F.elu(call.x(), call.attr("alpha", 1.0)),
    "Celu": lambda call: F.celu(call.x(), call.attr("alpha", 1.0)),
    "Affine": lambda call: call.attr("alpha", 1.0) * call.x() + call.attr("beta", 0.0),
    "ScaledTanh": lambda call: call.attr("alpha", 1.0) * torch.tanh(call.attr("beta", 1.0) * call.x()),
    "ParametricSoftplus": lambda call: call.attr("alpha", 1.0) * F.softplus(call.attr("beta", 1.0) * call.x()),
    "Max": variadic(torch.maximum),
    "Min": variadic(torch.minimum),
    "Sum": variadic(torch.add),
    "Mean": lambda call: reduce(torch.add, call.given) / len(call.given),
}
POINTWISE: dict[tuple[str, str], Operator] = {
    **{("", name): unary(function) for name, function in _FUNCTIONS.items()},
    **{("", name): binary(function) for name, function in _PAIRS.items()},
    **{("", name): operator for name, operator in _OTHERS.items()},
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("com.microsoft", "Gelu"): unary(F.gelu),
    ("com.microsoft", "BiasGelu"): lambda call: F.gelu(call.x() + call.x(1)),
    ("com.microsoft", "FastGelu"): lambda call: F.gelu(
        call.x() + call.x(1) if call.has(1) else call.x(), approximate="tanh"
    ),
}

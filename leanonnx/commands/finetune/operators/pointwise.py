"""Torch functions of elementwise operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import onnx
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall, on_one_device

_DTYPES: Mapping[int, torch.dtype] = {
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


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one input and no attributes."""
    return lambda call: function(call.value())


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two inputs, which are broadcast."""

    def run(call: TorchCall) -> Tensor:
        a, b = on_one_device(call.value(0), call.value(1))
        return function(a, _broadcast_from_axis(call, a, b))

    return run


def _broadcast_from_axis(call: TorchCall, a: Tensor, b: Tensor) -> Tensor:
    """Reshape the second operand as operator sets below 7 broadcast it: from ``axis`` on."""
    axis = call.attribute("axis")
    if call.opset >= 7 or axis is None or not call.attribute("broadcast", 0):
        return b
    return b.reshape(*b.shape, *[1] * (a.ndim - axis - b.ndim))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs, which are broadcast."""
    return lambda call: reduce(function, call.operands)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide; integer quotients are truncated towards 0."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(call: TorchCall) -> Tensor:
    low, high = (
        (call.attribute("min"), call.attribute("max"))
        if call.opset < 11
        else tuple(None if call.get(k) is None else call.value(k).reshape(()).to(call.value().device) for k in (1, 2))
    )
    x = call.value()
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def _cast(call: TorchCall) -> Tensor:
    kind = call.attribute("to")
    if isinstance(kind, str):
        kind = onnx.TensorProto.DataType.Value(kind)
    if kind not in _DTYPES:
        raise call.error(f"it casts to {onnx.TensorProto.DataType.Name(kind)}")
    return call.value().to(_DTYPES[kind])


def _prelu(call: TorchCall) -> Tensor:
    x, slope = call.value(), call.value(1)
    if call.opset < 7 and slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x >= 0, x, x * slope)


def _where(call: TorchCall) -> Tensor:
    condition, a, b = on_one_device(call.value(0), call.value(1), call.value(2))
    return torch.where(condition, a, b)


def _mod(call: TorchCall) -> Tensor:
    a, b = on_one_device(call.value(0), call.value(1))
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


def _gelu(call: TorchCall) -> Tensor:
    return F.gelu(call.value(), approximate=call.attribute("approximate", "none"))


def _is_infinite(call: TorchCall) -> Tensor:
    x = call.value()
    up, down = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    return (torch.isposinf(x) & bool(up)) | (torch.isneginf(x) & bool(down))


def _shrink(call: TorchCall) -> Tensor:
    x, limit, bias = call.value(), call.attribute("lambd", 0.5), call.attribute("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


def _power(call: TorchCall) -> Tensor:
    a, b = on_one_device(call.value(0), call.value(1))
    result = torch.pow(a, _broadcast_from_axis(call, a, b).to(a.dtype) if a.is_floating_point() else b)
    return result.to(a.dtype)


def _dropout(call: TorchCall) -> tuple[Tensor, Tensor]:
    return call.value(), torch.ones_like(call.value(), dtype=torch.bool)


def _swish(call: TorchCall) -> Tensor:
    return call.value() * torch.sigmoid(call.attribute("alpha", 1.0) * call.value())


def _threshold(call: TorchCall) -> Tensor:
    x = call.value()
    return torch.where(x > call.attribute("alpha", 1.0), x, torch.zeros_like(x))


def _image_scaler(call: TorchCall) -> Tensor:
    bias = torch.tensor(call.attribute("bias", []), device=call.value().device)
    return call.value() * call.attribute("scale", 1.0) + bias[:, None, None]


def _hard_sigmoid(call: TorchCall) -> Tensor:
    return torch.clamp(call.attribute("alpha", 0.2) * call.value() + call.attribute("beta", 0.5), 0, 1)


def _selu(call: TorchCall) -> Tensor:
    alpha, gamma = call.attribute("alpha", 1.6732632423543772), call.attribute("gamma", 1.0507009873554805)
    return gamma * F.elu(call.value(), alpha)


def _quick_gelu(call: TorchCall) -> Tensor:
    return call.value() * torch.sigmoid(call.attribute("alpha", 1.702) * call.value())


def _shift(call: TorchCall) -> Tensor:
    a, b = call.value(0), call.value(1)
    return torch.bitwise_left_shift(a, b) if call.attribute("direction") == "LEFT" else torch.bitwise_right_shift(a, b)


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
    "Div": _divide,
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
    "CastLike": lambda call: call.value().to(call.value(1).dtype),
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
    "LeakyRelu": lambda call: F.leaky_relu(call.value(), call.attribute("alpha", 0.01)),
    "Elu": lambda call: F.elu(call.value(), call.attribute("alpha", 1.0)),
    "Celu": lambda call: F.celu(call.value(), call.attribute("alpha", 1.0)),
    "Affine": lambda call: call.attribute("alpha", 1.0) * call.value() + call.attribute("beta", 0.0),
    "ScaledTanh": lambda call: call.attribute("alpha", 1.0) * torch.tanh(call.attribute("beta", 1.0) * call.value()),
    "ParametricSoftplus": lambda call: (
        call.attribute("alpha", 1.0) * F.softplus(call.attribute("beta", 1.0) * call.value())
    ),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Mean": lambda call: reduce(torch.add, call.operands) / len(call.operands),
}
TORCH_POINTWISE: dict[tuple[str, str], Operator] = {
    **{("", name): _unary(function) for name, function in _FUNCTIONS.items()},
    **{("", name): _binary(function) for name, function in _PAIRS.items()},
    **{("", name): operator for name, operator in _OTHERS.items()},
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("com.microsoft", "Gelu"): _unary(F.gelu),
    ("com.microsoft", "BiasGelu"): lambda call: F.gelu(call.value() + call.value(1)),
    ("com.microsoft", "FastGelu"): lambda call: F.gelu(
        call.value() + call.value(1) if call.has(1) else call.value(), approximate="tanh"
    ),
}

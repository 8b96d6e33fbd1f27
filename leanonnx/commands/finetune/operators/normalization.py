"""Torch functions of normalisations.  Stored statistics stay fixed; scale and bias are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall


def _batch_norm(call: TorchCall) -> Tensor:
    """Batch normalisation by the stored statistics, as in inference."""
    if call.attribute("training_mode", 0) or (call.opset < 14 and len(call.node.output) > 1):
        raise call.error("it is in training mode")
    x, scale, bias, mean, variance = (call.value(k) for k in range(5))
    epsilon = call.attribute("epsilon", 1e-5)
    return F.batch_norm(x, mean.to(x.dtype), variance.to(x.dtype), scale, bias, False, 0.0, epsilon)


def _standardise(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean)/√(var + ε) over some axes, the mean, and the factor 1/√(var + ε)."""
    mean = x.mean(dim=axes, keepdim=True)
    centred = x - mean
    factor = torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)
    return centred * factor, mean, factor


def _instance_norm(call: TorchCall) -> Tensor:
    """Normalise over the positions of each channel of each sample."""
    x = call.value()
    ones = [1] * (x.ndim - 2)
    normal, _, _ = _standardise(x, list(range(2, x.ndim)), call.attribute("epsilon", 1e-5))
    return normal * call.value(1).reshape(-1, *ones) + call.value(2).reshape(-1, *ones)


def _group_norm(call: TorchCall) -> Tensor:
    """Normalise over groups of channels; scale and bias are by group before operator set 21, then by channel."""
    x, groups = call.value(), call.attribute("num_groups")
    grouped = x.reshape(x.shape[0], groups, -1)
    normal, _, _ = _standardise(grouped, [2], call.attribute("epsilon", 1e-5))
    scale, bias = call.value(1), call.value(2)
    if scale.numel() == groups != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    ones = [1] * (x.ndim - 2)
    return normal.reshape(x.shape) * scale.reshape(-1, *ones) + bias.reshape(-1, *ones)


def _layer_norm(call: TorchCall) -> tuple[Tensor, ...]:
    """Normalise over the last axes; also return the mean and the factor."""
    x = call.value()
    axis = call.attribute("axis", -1) % x.ndim
    normal, mean, factor = _standardise(x, list(range(axis, x.ndim)), call.attribute("epsilon", 1e-5))
    normal = normal * call.value(1)
    bias = call.get(2)
    return (normal if bias is None else normal + bias), mean, factor


def _rms_norm(call: TorchCall) -> Tensor:
    """x/√(mean(x²) + ε) over the last axes, times the scale."""
    return _rms(call, call.value(), call.value(1))


def _rms(call: TorchCall, x: Tensor, scale: Tensor) -> Tensor:
    axis = call.attribute("axis", -1) % x.ndim
    power = x.square().mean(dim=list(range(axis, x.ndim)), keepdim=True)
    return x * torch.rsqrt(power + call.attribute("epsilon", 1e-5)) * scale


def _add_skip(call: TorchCall, bias: int) -> Tensor:
    added = call.value(0) + call.value(1)
    extra = call.get(bias)
    return added if extra is None else added + extra


def _skip_layer_norm(call: TorchCall) -> tuple[Tensor | None, ...]:
    """Layer normalisation of the sum of two tensors and a bias; the sum is the fourth output."""
    added = _add_skip(call, 4)
    normal, mean, factor = _standardise(added, [added.ndim - 1], call.attribute("epsilon", 1e-12))
    beta = call.get(3)
    normal = normal * call.value(2)
    return (normal if beta is None else normal + beta), mean, factor, added


def _skip_rms_norm(call: TorchCall) -> tuple[Tensor | None, ...]:
    """RMS normalisation of the sum of two tensors and a bias; the sum is the fourth output."""
    added = _add_skip(call, 3)
    return _rms(call, added, call.value(2)), None, None, added


def _local_response(call: TorchCall) -> Tensor:
    """x / (bias + alpha/size Σ x²)^beta over neighbouring channels."""
    x, size = call.value(), call.attribute("size")
    squares = F.pad(x.square().movedim(1, -1), [(size - 1) // 2, size // 2])
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (call.attribute("bias", 1.0) + call.attribute("alpha", 1e-4) / size * sums) ** call.attribute(
        "beta", 0.75
    )


def _mean_variance(call: TorchCall) -> Tensor:
    """Normalise over some axes by ONNX's variance: mean of the squares minus square of the mean."""
    x, axes = call.value(), call.attribute("axes", [0, 2, 3])
    mean = x.mean(dim=axes, keepdim=True)
    variance = x.square().mean(dim=axes, keepdim=True) - mean.square()
    return (x - mean) / (variance.sqrt() + 1e-9)


def _lp_norm(call: TorchCall) -> Tensor:
    """Divide x by its norm along an axis; 0 where the norm is 0."""
    x, axis, p = call.value(), call.attribute("axis", -1), call.attribute("p", 2)
    norm: Any = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


NORMALIZATION_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "BatchNormalization"): _batch_norm,
    ("", "InstanceNormalization"): _instance_norm,
    ("", "GroupNormalization"): _group_norm,
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("", "LRN"): _local_response,
    ("", "MeanVarianceNormalization"): _mean_variance,
    ("", "LpNormalization"): _lp_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
}

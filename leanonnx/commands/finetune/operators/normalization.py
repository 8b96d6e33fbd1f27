"""Torch functions of normalisations.  Statistics that the graph holds stay as they are; scale and bias are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor


def batch_norm(call: Call) -> Tensor:
    """By the statistics in the graph, as in inference."""
    if call.attr("training_mode", 0):
        raise call.refused("it is in training mode")
    x, scale, bias, mean, variance = (call.x(k) for k in range(5))
    epsilon = call.attr("epsilon", 1e-5)
    return F.batch_norm(x, mean.to(x.dtype), variance.to(x.dtype), scale, bias, False, 0.0, epsilon)


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean)/√(var + ε) over some axes, the mean and the factor."""
    mean = x.mean(dim=axes, keepdim=True)
    centred = x - mean
    factor = torch.rsqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)
    return centred * factor, mean, factor


def instance_norm(call: Call) -> Tensor:
    """Over the positions of each channel of each sample."""
    x = call.x()
    ones = [1] * (x.ndim - 2)
    found, _, _ = _standardised(x, list(range(2, x.ndim)), call.attr("epsilon", 1e-5))
    return found * call.x(1).reshape(-1, *ones) + call.x(2).reshape(-1, *ones)


def group_norm(call: Call) -> Tensor:
    """Over groups of channels; scale and bias by group before operator set 21, by channel after."""
    x, groups = call.x(), call.attr("num_groups")
    grouped = x.reshape(x.shape[0], groups, -1)
    found, _, _ = _standardised(grouped, [2], call.attr("epsilon", 1e-5))
    scale, bias = call.x(1), call.x(2)
    if scale.numel() == groups != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    ones = [1] * (x.ndim - 2)
    return found.reshape(x.shape) * scale.reshape(-1, *ones) + bias.reshape(-1, *ones)


def layer_norm(call: Call) -> tuple[Tensor, ...]:
    """Over the last axes; also gives the mean and the factor."""
    x = call.x()
    axis = call.attr("axis", -1) % x.ndim
    found, mean, factor = _standardised(x, list(range(axis, x.ndim)), call.attr("epsilon", 1e-5))
    found = found * call.x(1)
    bias = call.get(2)
    return (found if bias is None else found + bias), mean, factor


def rms_norm(call: Call) -> Tensor:
    """x/√(mean(x²) + ε) over the last axes, times the scale."""
    return _rms(call, call.x(), call.x(1))


def _rms(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axis = call.attr("axis", -1) % x.ndim
    power = x.square().mean(dim=list(range(axis, x.ndim)), keepdim=True)
    return x * torch.rsqrt(power + call.attr("epsilon", 1e-5)) * scale


def _skipped(call: Call, bias: int) -> Tensor:
    added = call.x(0) + call.x(1)
    extra = call.get(bias)
    return added if extra is None else added + extra


def skip_layer_norm(call: Call) -> tuple[Tensor | None, ...]:
    """Sum of two tensors and a bias, normalised; the sum is the fourth output."""
    added = _skipped(call, 4)
    found, mean, factor = _standardised(added, [added.ndim - 1], call.attr("epsilon", 1e-12))
    beta = call.get(3)
    found = found * call.x(2)
    return (found if beta is None else found + beta), mean, factor, added


def skip_rms_norm(call: Call) -> tuple[Tensor | None, ...]:
    """Sum of two tensors and a bias, over its root mean square; the sum is the fourth output."""
    added = _skipped(call, 3)
    return _rms(call, added, call.x(2)), None, None, added


def local_response(call: Call) -> Tensor:
    """x / (bias + alpha/size Σ x²)^beta over neighbouring channels."""
    x, size = call.x(), call.attr("size")
    squares = F.pad(x.square().movedim(1, -1), [(size - 1) // 2, size // 2])
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (call.attr("bias", 1.0) + call.attr("alpha", 1e-4) / size * sums) ** call.attr("beta", 0.75)


def mean_variance(call: Call) -> Tensor:
    """Standardised over some axes, the variance as ONNX defines it: mean of squares less square of the mean."""
    x, axes = call.x(), call.attr("axes", [0, 2, 3])
    mean = x.mean(dim=axes, keepdim=True)
    variance = x.square().mean(dim=axes, keepdim=True) - mean.square()
    return (x - mean) / (variance.sqrt() + 1e-9)


def lp_norm(call: Call) -> Tensor:
    """x over its norm along an axis; 0 where that is 0."""
    x, axis, p = call.x(), call.attr("axis", -1), call.attr("p", 2)
    norm: Any = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


NORMALIZATION: dict[tuple[str, str], Operator] = {
    ("", "BatchNormalization"): batch_norm,
    ("", "InstanceNormalization"): instance_norm,
    ("", "GroupNormalization"): group_norm,
    ("", "LayerNormalization"): layer_norm,
    ("", "RMSNormalization"): rms_norm,
    ("", "SimplifiedLayerNormalization"): rms_norm,
    ("", "LRN"): local_response,
    ("", "MeanVarianceNormalization"): mean_variance,
    ("", "LpNormalization"): lp_norm,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_rms_norm,
}

"""Torch functions of Resize and Upsample: per axis, weighted sums of a few input positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall

_Float32s = NDArray[np.float32]
_TAP_COUNTS = {"nearest": 1, "linear": 2, "cubic": 4}


def _resize(call: TorchCall) -> Tensor:
    """Resize in nearest, linear or cubic mode, with every coordinate mapping but ``tf_crop_and_resize``."""
    x, mode = call.value(), call.attribute("mode", "nearest")
    if mode not in _TAP_COUNTS or call.attribute("antialias", 0):
        raise call.error(f"its mode is {mode}{', antialiased' if call.attribute('antialias', 0) else ''}")
    if call.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise call.error("it crops as it resizes")
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.error("it keeps the aspect ratio")
    axes = [axis % x.ndim for axis in call.attribute("axes", range(x.ndim))]
    for axis, (size, scale) in zip(axes, _sizes(call, axes), strict=True):
        if size != x.shape[axis] or scale != 1:
            x = _resize_axis(call, x, axis, size, scale)
    return x


def _sizes(call: TorchCall, axes: list[int]) -> list[tuple[int, float]]:
    """New size and scale of each axis."""
    x = call.value()
    old = [x.shape[axis] for axis in axes]
    if call.has(3) and call.value(3).numel():
        return [(new, new / n) for new, n in zip(call.required_ints(3), old, strict=True)]
    place = 2 if call.opset >= 11 else 1
    scales = call.value(place).tolist() if call.has(place) else call.attribute("scales")
    if scales is None:
        raise call.error("it has neither sizes nor scales")
    return [(math.floor(n * scale), scale) for n, scale in zip(old, scales, strict=True)]


def _resize_axis(call: TorchCall, x: Tensor, axis: int, size: int, scale: float) -> Tensor:
    """Resize one axis."""
    places, weights = _taps(call, x.shape[axis], size, scale)
    terms = []
    for place, weight in zip(places, weights, strict=True):
        part = x.index_select(axis, torch.from_numpy(place).to(x.device))
        if len(places) > 1:
            shape = [-1 if k == axis else 1 for k in range(x.ndim)]
            part = part * torch.from_numpy(weight).to(x.device, x.dtype).reshape(shape)
        terms.append(part)
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def _taps(call: TorchCall, old: int, new: int, scale: float) -> tuple[NDArray[np.int64], _Float32s]:
    """Input positions and their weights [taps, new]."""
    mode = call.attribute("mode", "nearest")
    at = _coordinates(call, old, new, np.float32(scale))
    if mode == "nearest":
        places = np.clip(_round_positions(call, at, scale), 0, old - 1).astype(np.int64)
        return places[None], np.ones((1, new), np.float32)
    if mode == "linear":
        at = np.clip(at, 0, old - 1)
        low = np.floor(at).astype(np.int64)
        share = (at - low).astype(np.float32)
        return np.stack([low, np.minimum(low + 1, old - 1)]), np.stack([1 - share, share])
    low = np.floor(at)
    weights = _cubic((at - low).astype(np.float32), call.attribute("cubic_coeff_a", -0.75))
    places = low.astype(np.int64) + np.arange(-1, 3)[:, None]
    if call.attribute("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= old), np.float32(0), weights)
        weights = weights / weights.sum(axis=0)
    return np.clip(places, 0, old - 1), weights


def _cubic(share: _Float32s, a: float) -> _Float32s:
    """Weights of the four neighbours [4, new] by Keys' cubic convolution."""
    far, near = share + 1, share
    other, last = 1 - share, 2 - share

    def outer(d: _Float32s) -> Any:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    def inner(d: _Float32s) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    return np.stack([outer(far), inner(near), inner(other), outer(last)]).astype(np.float32)


def _coordinates(call: TorchCall, old: int, new: int, scale: np.float32) -> _Float32s:
    """Input coordinate of each output position [new]."""
    modern = call.opset >= 11 and call.node.op_type == "Resize"
    mode = call.attribute("coordinate_transformation_mode", "half_pixel" if modern else "asymmetric")
    at = np.arange(new, dtype=np.float32)
    half = np.float32(0.5)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * np.float32(old - 1) / np.float32(new - 1) if new > 1 else np.zeros(new, np.float32)
    if mode == "pytorch_half_pixel" and new == 1:
        return np.zeros(new, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (at + half) / scale - half
    if mode == "tf_half_pixel_for_nn":
        return (at + half) / scale
    if mode == "half_pixel_symmetric":
        whole = np.float32(old) * scale
        offset = np.float32(old) / 2 * (1 - np.float32(new) / whole)
        return np.asarray(offset + (at + half) / scale - half, np.float32)
    raise call.error(f"its coordinates are mapped by {mode}")


def _round_positions(call: TorchCall, at: _Float32s, scale: float) -> _Float32s:
    """Round to the nearest position; older operator sets round up when an image shrinks, else down."""
    if call.opset < 11 or call.node.op_type == "Upsample":
        return np.ceil(at) if scale < 1 else np.floor(at)
    mode = call.attribute("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        return np.floor(at)
    if mode == "ceil":
        return np.ceil(at)
    if mode == "round_prefer_ceil":
        return np.asarray(np.floor(at + np.float32(0.5)))
    return np.asarray(np.ceil(at - np.float32(0.5)))


RESIZE_OPERATORS: dict[tuple[str, str], Operator] = {("", "Resize"): _resize, ("", "Upsample"): _resize}

"""Torch functions of operators that only move data or compute shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall, on_one_device
from leanonnx.commands.finetune.operators.linear import pad_image, strides_and_dilations

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _reshape(call: TorchCall) -> Tensor:
    """Reshape; 0 copies the size (unless ``allowzero``), -1 is inferred."""
    x = call.value()
    target = call.ints(1, "shape") or []
    if not call.attribute("allowzero", 0):
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]
    return x.reshape(target)


def _flatten(call: TorchCall) -> Tensor:
    """Flatten to a matrix."""
    x, axis = call.value(), call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: TorchCall) -> Tensor:
    """Permute the axes; reverse them by default."""
    return call.value().permute(*call.attribute("perm", list(reversed(range(call.value().ndim)))))


def _squeeze(call: TorchCall) -> Tensor:
    """Remove axes of size 1."""
    x, axes = call.value(), call.ints(1, "axes")
    return x.squeeze() if axes is None else x.squeeze([axis % x.ndim for axis in axes])


def _unsqueeze(call: TorchCall) -> Tensor:
    """Insert axes of size 1 at positions of the result."""
    x, axes = call.value(), call.ints(1, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: TorchCall) -> Tensor:
    """Concatenate tensors along an axis."""
    return torch.cat(call.operands, dim=call.attribute("axis", 1))


def _split(call: TorchCall) -> tuple[Tensor, ...]:
    """Split into the given sizes, or into equal parts, of which the last may be smaller."""
    x, axis = call.value(), call.attribute("axis", 0)
    sizes = call.ints(1, "split")
    if sizes is None:
        parts = call.attribute("num_outputs", len(call.node.output))
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return tuple(torch.split(x, sizes, dim=axis))


def _slice(call: TorchCall) -> Tensor:
    """Slice along some axes; steps may be negative."""
    x = call.value()
    starts, ends = call.ints(1, "starts") or [], call.ints(2, "ends") or []
    axes = call.ints(3, "axes") or list(range(len(starts)))
    strides = call.required_ints(4) if call.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, strides, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, _integers(list(places)).to(x.device))
    return x


def _pad(call: TorchCall) -> Tensor:
    """Pad with a constant or with values of the tensor; negative widths crop."""
    x, mode = call.value(), call.attribute("mode", "constant")
    name = "pads" if call.opset > 1 else "paddings"
    widths = call.ints(1, name) or []
    axes = [axis % x.ndim for axis in call.required_ints(3)] if call.has(3) else list(range(x.ndim))
    pads = [0] * (2 * x.ndim)
    for k, axis in enumerate(axes):
        pads[axis], pads[x.ndim + axis] = widths[k], widths[len(axes) + k]
    if mode == "constant":
        value = (
            float(call.value(2).reshape(-1)[0])
            if call.has(2) and call.value(2).numel()
            else call.attribute("value", 0.0)
        )
        return pad_image(x, pads, value)
    if mode not in _PAD_MODES:
        raise call.error(f"its mode is {mode}")
    x = pad_image(x, [min(width, 0) for width in pads])
    for axis in range(x.ndim):
        begin, end = max(pads[axis], 0), max(pads[x.ndim + axis], 0)
        if begin or end:
            places = np.pad(np.arange(x.shape[axis]), (begin, end), mode=_PAD_MODES[mode])  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _depth_to_space(call: TorchCall) -> Tensor:
    """Rearrange channels into blocks of positions."""
    x, r = call.value(), call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "CRD":
        return x.reshape(n, c // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // r**2, h * r, w * r)
    return x.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // r**2, h * r, w * r)


def _space_to_depth(call: TorchCall) -> Tensor:
    """Rearrange blocks of positions into channels."""
    x, r = call.value(), call.attribute("blocksize")
    n, c, h, w = x.shape
    return x.reshape(n, c, h // r, r, w // r, r).permute(0, 3, 5, 1, 2, 4).reshape(n, c * r * r, h // r, w // r)


def _col2im(call: TorchCall) -> Tensor:
    """Add up blocks of pixels at their positions in an image of two axes."""
    image = call.required_ints(1)
    if len(image) != 2:
        raise call.error(f"its image has {len(image)} axes")
    top, left, bottom, right = call.attribute("pads", [0] * 4)
    strides, dilations = strides_and_dilations(call, 2)
    size = (image[0] + top + bottom, image[1] + left + right)
    y = F.fold(call.value(), size, call.required_ints(2), dilations, 0, strides)
    return pad_image(y, [0, 0, -top, -left, 0, 0, -bottom, -right])


def _expand(call: TorchCall) -> Tensor:
    """Broadcast a tensor and a shape against each other."""
    x = call.value()
    return x.expand(torch.broadcast_shapes(x.shape, tuple(call.required_ints(1))))


def _crop(call: TorchCall) -> Tensor:
    """Crop the border of an image: left, top, right, bottom."""
    x = call.value()
    left, top, right, bottom = call.attribute("border")
    size = call.attribute("scale")
    if size:
        return x[:, :, top : top + size[0], left : left + size[1]]
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def _shape(call: TorchCall) -> Tensor:
    """The sizes of a tensor, from ``start`` to ``end``."""
    return _integers(list(call.value().shape)[slice(call.attribute("start", 0), call.attribute("end"))])


def _constant_of_shape(call: TorchCall) -> Tensor:
    """Fill a tensor with one value."""
    value = call.attribute("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(value.reshape(-1).copy())
    return fill.expand(call.required_ints(0) or ()).clone() if call.value().numel() else fill.reshape(())


def _range(call: TorchCall) -> Tensor:
    """Values start, start + delta, … below the limit."""
    start, limit, delta = (call.value(k).reshape(()).item() for k in range(3))
    return torch.arange(start, limit, delta, dtype=call.value().dtype)


def _tile(call: TorchCall) -> Tensor:
    """Repeat along each axis."""
    return call.value().repeat(call.required_ints(1))


def _eye_like(call: TorchCall) -> Tensor:
    """Matrix with ones on a diagonal."""
    x = call.value()
    eye = torch.zeros(*x.shape, dtype=x.dtype)
    k = call.attribute("k", 0)
    rows = torch.arange(x.shape[0])
    inside = (rows + k >= 0) & (rows + k < x.shape[1])
    eye[rows[inside], rows[inside] + k] = 1
    return eye.to(x.device)


def _one_hot(call: TorchCall) -> Tensor:
    """One-hot encoding with an off and an on value; indices out of range give off values only."""
    indices, values = on_one_device(call.value(0), call.value(2))
    depth, axis = call.required_ints(1)[0], call.attribute("axis", -1)
    indices = torch.where(indices < 0, indices + depth, indices).to(torch.int64)
    hot = indices.unsqueeze(-1) == torch.arange(depth, device=indices.device)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def _trilu(call: TorchCall) -> Tensor:
    """Upper or lower triangle."""
    k = call.required_ints(1)[0] if call.has(1) else 0
    return torch.triu(call.value(), k) if call.attribute("upper", 1) else torch.tril(call.value(), k)


def _affine_grid(call: TorchCall) -> Tensor:
    """Sampling positions of an affine map."""
    return F.affine_grid(call.value(), call.required_ints(1), align_corners=bool(call.attribute("align_corners", 0)))


MOVEMENT_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _flatten,
    ("", "Transpose"): _transpose,
    ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Pad"): _pad,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "Col2Im"): _col2im,
    ("", "Expand"): _expand,
    ("", "Tile"): _tile,
    ("", "Crop"): _crop,
    ("", "Shape"): _shape,
    ("", "Size"): lambda call: torch.tensor(call.value().numel()),
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Range"): _range,
    ("", "EyeLike"): _eye_like,
    ("", "OneHot"): _one_hot,
    ("", "Trilu"): _trilu,
    ("", "AffineGrid"): _affine_grid,
}

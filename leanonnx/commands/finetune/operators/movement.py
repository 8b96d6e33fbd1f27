"""Torch functions of operators that only move data, and of those that compute shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor, together
from leanonnx.commands.finetune.operators.linear import bordered, steps

MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def reshape(call: Call) -> Tensor:
    """0 copies the size (unless ``allowzero``), -1 is what is left."""
    x = call.x()
    target = call.either("shape", 1) or []
    if not call.attr("allowzero", 0):
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]
    return x.reshape(target)


def flatten(call: Call) -> Tensor:
    """To a matrix."""
    x, axis = call.x(), call.attr("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(call: Call) -> Tensor:
    """By default, the axes reversed."""
    return call.x().permute(*call.attr("perm", list(reversed(range(call.x().ndim)))))


def squeeze(call: Call) -> Tensor:
    """Axes of size 1 left out."""
    x, axes = call.x(), call.either("axes", 1)
    return x.squeeze() if axes is None else x.squeeze([axis % x.ndim for axis in axes])


def unsqueeze(call: Call) -> Tensor:
    """Axes of size 1 put in, named by where they stand in the result."""
    x, axes = call.x(), call.either("axes", 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def concat(call: Call) -> Tensor:
    """Tensors one after the other."""
    return torch.cat(call.given, dim=call.attr("axis", 1))


def split(call: Call) -> tuple[Tensor, ...]:
    """Into given sizes, or as equal as can be."""
    x, axis = call.x(), call.attr("axis", 0)
    sizes = call.either("split", 1)
    if sizes is None:
        parts = call.attr("num_outputs", len(call.node.output))
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return tuple(torch.split(x, sizes, dim=axis))


def slice_(call: Call) -> Tensor:
    """Along some axes; steps may be negative."""
    x = call.x()
    starts, ends = call.either("starts", 1) or [], call.either("ends", 2) or []
    axes = call.either("axes", 3) or list(range(len(starts)))
    strides = call.ints(4) if call.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, strides, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, _integers(list(places)).to(x.device))
    return x


def pad(call: Call) -> Tensor:
    """A border of a constant, or of what lies inside; negative widths cut off."""
    x, mode = call.x(), call.attr("mode", "constant")
    name = "pads" if call.opset > 1 else "paddings"
    widths = call.either(name, 1) or []
    axes = [axis % x.ndim for axis in call.ints(3)] if call.has(3) else list(range(x.ndim))
    pads = [0] * (2 * x.ndim)
    for k, axis in enumerate(axes):
        pads[axis], pads[x.ndim + axis] = widths[k], widths[len(axes) + k]
    if mode == "constant":
        value = float(call.x(2).reshape(-1)[0]) if call.has(2) and call.x(2).numel() else call.attr("value", 0.0)
        return bordered(x, pads, value)
    if mode not in MODES:
        raise call.refused(f"its mode is {mode}")
    x = bordered(x, [min(width, 0) for width in pads])
    for axis in range(x.ndim):
        begin, end = max(pads[axis], 0), max(pads[x.ndim + axis], 0)
        if begin or end:
            places = np.pad(np.arange(x.shape[axis]), (begin, end), mode=MODES[mode])  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def depth_to_space(call: Call) -> Tensor:
    """Channels to blocks of positions."""
    x, r = call.x(), call.attr("blocksize")
    n, c, h, w = x.shape
    if call.attr("mode", "DCR") == "CRD":
        return x.reshape(n, c // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // r**2, h * r, w * r)
    return x.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // r**2, h * r, w * r)


def space_to_depth(call: Call) -> Tensor:
    """Blocks of positions to channels."""
    x, r = call.x(), call.attr("blocksize")
    n, c, h, w = x.shape
    return x.reshape(n, c, h // r, r, w // r, r).permute(0, 3, 5, 1, 2, 4).reshape(n, c * r * r, h // r, w // r)


def col2im(call: Call) -> Tensor:
    """Blocks of pixels added up where they lie in an image of two axes."""
    image = call.ints(1)
    if len(image) != 2:
        raise call.refused(f"its image has {len(image)} axes")
    top, left, bottom, right = call.attr("pads", [0] * 4)
    strides, dilations = steps(call, 2)
    size = (image[0] + top + bottom, image[1] + left + right)
    y = F.fold(call.x(), size, call.ints(2), dilations, 0, strides)
    return bordered(y, [0, 0, -top, -left, 0, 0, -bottom, -right])


def expand(call: Call) -> Tensor:
    """Broadcast to a shape, both ways."""
    x = call.x()
    return x.expand(torch.broadcast_shapes(x.shape, tuple(call.ints(1))))


def crop(call: Call) -> Tensor:
    """A border cut off an image: left, top, right, bottom."""
    x = call.x()
    left, top, right, bottom = call.attr("border")
    size = call.attr("scale")
    if size:
        return x[:, :, top : top + size[0], left : left + size[1]]
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def shape(call: Call) -> Tensor:
    """The sizes of a tensor, from ``start`` to ``end``."""
    return _integers(list(call.x().shape)[slice(call.attr("start", 0), call.attr("end"))])


def constant_of_shape(call: Call) -> Tensor:
    """A tensor filled with one value."""
    value = call.attr("value")
    filling = torch.zeros(1) if value is None else torch.from_numpy(value.reshape(-1).copy())
    return filling.expand(call.ints(0) or ()).clone() if call.x().numel() else filling.reshape(())


def range_(call: Call) -> Tensor:
    """start, start + delta, … below the limit."""
    start, limit, delta = (call.x(k).reshape(()).item() for k in range(3))
    return torch.arange(start, limit, delta, dtype=call.x().dtype)


def tile(call: Call) -> Tensor:
    """Repeated along each axis."""
    return call.x().repeat(call.ints(1))


def eye_like(call: Call) -> Tensor:
    """Ones on a diagonal."""
    x = call.x()
    found = torch.zeros(*x.shape, dtype=x.dtype)
    k = call.attr("k", 0)
    rows = torch.arange(x.shape[0])
    inside = (rows + k >= 0) & (rows + k < x.shape[1])
    found[rows[inside], rows[inside] + k] = 1
    return found.to(x.device)


def one_hot(call: Call) -> Tensor:
    """On and off values by index; indices out of range are off throughout."""
    indices, values = together(call.x(0), call.x(2))
    depth, axis = call.ints(1)[0], call.attr("axis", -1)
    indices = torch.where(indices < 0, indices + depth, indices).to(torch.int64)
    hot = indices.unsqueeze(-1) == torch.arange(depth, device=indices.device)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def trilu(call: Call) -> Tensor:
    """The upper or lower triangle."""
    k = call.ints(1)[0] if call.has(1) else 0
    return torch.triu(call.x(), k) if call.attr("upper", 1) else torch.tril(call.x(), k)


def affine_grid(call: Call) -> Tensor:
    """Positions to sample at."""
    return F.affine_grid(call.x(), call.ints(1), align_corners=bool(call.attr("align_corners", 0)))


MOVEMENT: dict[tuple[str, str], Operator] = {
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Transpose"): transpose,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Pad"): pad,
    ("", "DepthToSpace"): depth_to_space,
    ("", "SpaceToDepth"): space_to_depth,
    ("", "Col2Im"): col2im,
    ("", "Expand"): expand,
    ("", "Tile"): tile,
    ("", "Crop"): crop,
    ("", "Shape"): shape,
    ("", "Size"): lambda call: torch.tensor(call.x().numel()),
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "Range"): range_,
    ("", "EyeLike"): eye_like,
    ("", "OneHot"): one_hot,
    ("", "Trilu"): trilu,
    ("", "AffineGrid"): affine_grid,
}

"""Operators that the reference evaluator of ONNX lacks or computes wrongly, written from the specification.

The evaluator of onnx 1.23 has no DequantizeLinear before operator set 19, takes batch statistics in BatchNormalization
before 14, normalises one axis in Softmax and its kin before 13, and is wrong in LRN, in GlobalMaxPool unless there are
two spatial axes, and in ConvTranspose with groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from leanonnx.graph.view import GraphView
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import on_axis


@dataclass(frozen=True)
class Substitute:
    """An operator in place of the evaluator's own.

    Attributes:
        op: name of the operator.
        version: operator set whose attributes it takes.
        until: operator set from which the evaluator's own is right; None: not yet.
        compute: the output of the operator from its inputs, and from its attributes by name.
    """

    op: str
    version: int
    until: int | None
    compute: Callable[..., Array]


def reference_evaluator(proto: onnx.ModelProto) -> ReferenceEvaluator:
    """The evaluator of ONNX, with the operators below where its own are missing or wrong."""
    opset = GraphView(proto).opset
    wanted = [each for each in SUBSTITUTES if each.until is None or opset < each.until]
    return ReferenceEvaluator(proto, new_ops=[_as_class(each) for each in wanted])


def _as_class(substitute: Substitute) -> type[OpRun]:
    def run(_: OpRun, *inputs: Array | None, **attributes: Any) -> tuple[Array]:
        return (substitute.compute(*inputs, **attributes),)

    members = {"_run": run, "op_schema": onnx.defs.get_schema(substitute.op, substitute.version)}
    return type(substitute.op, (OpRun,), members)


def _on_axis(values: Array, axis: int, rank: int) -> Array:
    """A vector [n] as an array of this rank that varies along one axis; scalars stay."""
    return on_axis(values, axis, rank) if values.size > 1 else values.reshape(())


def _dequantise(x: Array, scale: Array, zero: Array | None = None, *, axis: int) -> Array:
    origin = np.float32(0) if zero is None else _on_axis(zero.astype(np.float32), axis, x.ndim)
    return np.asarray((x.astype(np.float32) - origin) * _on_axis(scale, axis, x.ndim), scale.dtype)


def _normalise_batch(x: Array, *vectors: Array, epsilon: float, **_: Any) -> Array:
    scale, bias, mean, var = (_on_axis(each, 1, x.ndim) for each in vectors)
    return np.asarray(scale * (x - mean) / np.sqrt(var + np.float32(epsilon)) + bias, x.dtype)


def _normalise_by_neighbours(x: Array, *, alpha: float, beta: float, bias: float, size: int) -> Array:
    before, after = (size - 1) // 2, size // 2 + 1
    near = (slice(max(0, c - before), c + after) for c in range(x.shape[1]))
    energies = np.stack([np.sum(x[:, window] ** 2, axis=1) for window in near], axis=1)
    return np.asarray(x / (bias + alpha / size * energies) ** beta, x.dtype)


def _greatest(x: Array) -> Array:
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


def _convolve_transposed(x: Array, weight: Array, bias: Array | None = None, *, group: int, **options: Any) -> Array:
    """The evaluator's own, which is right for one group, for each."""
    given = {name: option for name, option in options.items() if option is not None}
    names = ["x", "weight", "bias"][: 2 if bias is None else 3]
    run: Any = ReferenceEvaluator(onnx.helper.make_node("ConvTranspose", names, ["y"], group=1, **given)).run
    split = [np.split(x, group, axis=1), *(np.split(each, group) for each in (weight, bias) if each is not None)]
    parts = [run(None, dict(zip(names, part, strict=True)))[0] for part in zip(*split, strict=True)]
    return np.concatenate(parts, axis=1)


def _flatten_from_axis(of_rows: Callable[[Array], Array]) -> Callable[..., Array]:
    """An operator on rows [rows, n] over all axes from ``axis`` on, taken as one."""

    def compute(x: Array, *, axis: int) -> Array:
        rows = x.reshape(int(np.prod(x.shape[: axis % x.ndim])), -1)
        return np.asarray(of_rows(rows), x.dtype).reshape(x.shape)

    return compute


def _softmax(rows: Array) -> Array:
    shares = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _log_softmax(rows: Array) -> Array:
    below = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(below - np.log(np.exp(below).sum(axis=1, keepdims=True)))


def _hardmax(rows: Array) -> Array:
    return np.asarray(np.arange(rows.shape[1]) == rows.argmax(axis=1)[:, None])


SUBSTITUTES = (
    Substitute("DequantizeLinear", 13, 19, _dequantise),
    Substitute("BatchNormalization", 9, 14, _normalise_batch),
    Substitute("LRN", 13, None, _normalise_by_neighbours),
    Substitute("GlobalMaxPool", 1, None, _greatest),
    Substitute("ConvTranspose", 11, None, _convolve_transposed),
    Substitute("Softmax", 11, 13, _flatten_from_axis(_softmax)),
    Substitute("LogSoftmax", 11, 13, _flatten_from_axis(_log_softmax)),
    Substitute("Hardmax", 11, 13, _flatten_from_axis(_hardmax)),
)

"""Networks with channels that are zero, as pruning without surgery leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.commands.compress.pipeline import CompressResult, compress_file
from leanonnx.commands.compress.pruning import UNPROVEN_TIDYING
from tests.helpers import Options, build, saved

Edit = Callable[[np.ndarray], None]

TIGHT = 1e-5


def edited(proto: onnx.ModelProto, **edits: Edit) -> onnx.ModelProto:
    """The model with constants changed in place."""
    for tensor in proto.graph.initializer:
        if tensor.name in edits:
            array = numpy_helper.to_array(tensor).copy()
            edits[tensor.name](array)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def put(number: float, *index: Any) -> Edit:
    """Write a number at an index: ``put(0, [1, 2])`` to rows, ``put(0, slice(None), 3)`` to a column."""

    def edit(array: np.ndarray) -> None:
        array[index] = number

    return edit


def minimal(proto: onnx.ModelProto, folder: Path, **options: Any) -> tuple[CompressResult, onnx.ModelProto]:
    """The model written by ``--exact``, proven tightly."""
    source, target = saved(proto, folder / "in.onnx"), folder / "out.onnx"
    result = compress_file(source, target, Options(exact=True, **options))
    assert result.proof.passed
    assert result.proof.max_relative_error < TIGHT
    assert UNPROVEN_TIDYING not in result.warnings
    after = onnx.load(target)
    assert list(after.graph.output) == list(proto.graph.output)
    assert [v.name for v in after.graph.input] == [v.name for v in proto.graph.input]
    return result, after


def sizes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in proto.graph.initializer}


def gone(result: CompressResult) -> tuple[int, int]:
    """Classes that went: unread, constant."""
    assert result.exact is not None
    counts = result.exact["channels"]
    return counts["unread"], counts["constant"]


FRAME = """
<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
small (float[1, 2, 6, 6] x) => (float[1, 3, n, m] y)
<float[8, 2, 3, 3] w, float[8] b, float[3, {read}, {k}, {k}] v, float[3] vb{constants}>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    {body}
    y = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (d, v, vb)
}}
"""


def framed(body: str, constants: str = "", k: int = 3, pad: int = 1, read: int = 8, opset: int = 17) -> onnx.ModelProto:
    """A convolution ``c`` of eight channels, nodes from ``c`` to ``d``, and a convolution that reads ``d``."""
    more = f", {constants}" if constants else ""
    return build(FRAME.format(body=body, constants=more, k=k, pad=pad, read=read, opset=opset))


def soft_pruned(proto: onnx.ModelProto, *channels: int, bias: float = 0.0) -> onnx.ModelProto:
    """Filters of ``c`` set to zero, with this bias."""
    return edited(proto, w=put(0, list(channels)), b=put(bias, list(channels)))


# ties


RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float[{batch}, 2, {size}, {size}] x) => (float[n, 3, h, w] y)
<float[8, 2, 3, 3] w, float[8] b, float[4, 8, 1, 1] p, float[4, 4, 3, 3] q, float[8, 4, 1, 1] r, float[8] rb,
 float[3, 8, 1, 1] v>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    s = Relu (c)
    e = Conv (s, p)
    f = Relu (e)
    g = Conv <pads = [1, 1, 1, 1]> (f, q)
    h = Relu (g)
    a = Conv (h, r, rb)
    t = Add (a, s)
    u = Relu (t)
    y = Conv (u, v)
}}
"""

LARGE = {"batch": 1, "size": 6}


def residual(where: Mapping[str, object] = LARGE) -> onnx.ModelProto:
    return edited(build(RESIDUAL.format(**where)), rb=put(0, slice(None)))

"""Read intermediate tensors of a model while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from leanonnx.graph.formats import HALF_TYPES, convert_feed, convert_to_float32, float_types
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, open_session, run_session, translate_errors


@contextmanager
def expose_tensors(
    proto: onnx.ModelProto, names: Sequence[str], more: Sequence[onnx.NodeProto] = ()
) -> Iterator[onnx.ModelProto]:
    """Make these tensors the only outputs of a protobuf, in place, and restore it afterwards (no weights are copied).

    ``more`` are nodes to append meanwhile.
    """
    count, outputs = len(proto.graph.node), [value.SerializeToString() for value in proto.graph.output]
    try:
        del proto.graph.output[:]
        proto.graph.node.extend(more)
        proto.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
        yield proto
    finally:
        del proto.graph.node[count:]
        del proto.graph.output[:]
        proto.graph.output.extend([onnx.ValueInfoProto.FromString(raw) for raw in outputs])


def tensor_values(
    proto: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed], libraries: Sequence[Path] = ()
) -> Iterator[dict[str, Array]]:
    """Yield the named tensors for each feed; float16 and bfloat16 are computed in float32.

    Raises:
        RunFailed: onnxruntime cannot load or run the model.
        UserError: the feeds cannot be read.
    """
    halves = float_types(proto) & HALF_TYPES
    names = list(dict.fromkeys(names))
    if not names:
        yield from ({} for _ in feeds)
        return
    source = convert_to_float32(proto, halves)
    with (
        translate_errors(),
        expose_tensors(source, names) as exposed,
        open_session(exposed, libraries=libraries) as session,
    ):
        for feed in feeds:
            values = run_session(session, convert_feed(feed, halves))
            yield {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

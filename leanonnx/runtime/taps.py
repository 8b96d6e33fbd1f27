"""Looking at what is inside a network while it runs on given inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from leanonnx.errors import UserError
from leanonnx.graph.formats import fed_in_float32, float_kinds, in_float32
from leanonnx.graph.model import first_line
from leanonnx.runtime.sessions import Array, Feed, RunFailed, finished, opened


@contextmanager
def tapped(proto: onnx.ModelProto, names: Sequence[str]) -> Iterator[onnx.ModelProto]:
    """The same protobuf with these tensors as its only outputs, restored afterwards (the weights are not copied)."""
    outputs = [value.SerializeToString() for value in proto.graph.output]
    try:
        del proto.graph.output[:]
        proto.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
        yield proto
    finally:
        del proto.graph.output[:]
        proto.graph.output.extend([onnx.ValueInfoProto.FromString(raw) for raw in outputs])


def watched(
    proto: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed], libraries: Sequence[Path] = ()
) -> Iterator[dict[str, Array]]:
    """The tensors named, for each feed in turn; float16 and bfloat16 are computed in float32.

    Raises:
        RunFailed: onnxruntime cannot load or run the model.
        UserError: the feeds cannot be read.
    """
    halves = float_kinds(proto) & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    source = in_float32(proto, halves) if halves else proto
    wanted = list(dict.fromkeys(names))
    if not wanted:
        yield from ({} for _ in feeds)
        return
    try:
        with tapped(source, wanted) as taps, opened(taps, libraries=libraries) as session:
            for feed in feeds:
                found = finished(session, fed_in_float32(feed, halves))
                yield {name: np.asarray(value) for name, value in zip(wanted, found, strict=True)}
    except (OSError, UserError, GeneratorExit):
        raise
    except Exception as error:  # onnxruntime raises its own types, one per status code
        raise RunFailed(first_line(error)) from error

"""Arguments as callers give them: a model by the path of its file or in memory, one value or several."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import onnx
from onnx.external_data_helper import uses_external_data

from leanonnx.errors import LeanOnnxError, ModelError
from leanonnx.graph.formats import graphs
from leanonnx.graph.storage import write_model
from leanonnx.system.outputs import StrPath

T = TypeVar("T")
ModelSource = StrPath | onnx.ModelProto
UNNAMED = "the model"
"""What messages call a model in memory."""


def title(model: ModelSource) -> str:
    """The path of a model as text."""
    return UNNAMED if isinstance(model, onnx.ModelProto) else str(Path(model))


@contextmanager
def as_file(model: ModelSource) -> Iterator[Path]:
    """The file of a model; one that is in memory has a temporary file, which errors raised inside do not name.

    Raises:
        ModelError: the model in memory lacks its external data.
    """
    if not isinstance(model, onnx.ModelProto):
        yield Path(model)
        return
    if any(uses_external_data(tensor) for graph in graphs(model.graph) for tensor in graph.initializer):
        raise ModelError(f"{UNNAMED}: its external data are not loaded; give its path, or load it with onnx.load(path)")
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path, external=False)
        try:
            yield path
        except LeanOnnxError as error:
            raise type(error)(str(error).replace(str(path), UNNAMED)) from error


def several(given: Any, kind: type[T]) -> tuple[T, ...]:
    """One value or several, as a tuple."""
    alone = isinstance(given, str | PathLike | Integral)
    return (kind(given),) if alone else tuple(kind(value) for value in given)  # type: ignore[call-arg]

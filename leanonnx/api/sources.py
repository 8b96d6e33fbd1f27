"""Convert the arguments of the public functions: models by path or in memory, one value or several."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

import onnx
from numpy.typing import ArrayLike
from onnx.external_data_helper import uses_external_data

from leanonnx.data.batches import as_arrays
from leanonnx.data.files import IN_MEMORY_TITLE
from leanonnx.data.samples import SampleSource
from leanonnx.errors import LeanOnnxError, ModelError
from leanonnx.graph.formats import graphs
from leanonnx.graph.storage import write_model
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.rules.user import extend_rules, read_rules
from leanonnx.surgery.plan import Plan, load_plan
from leanonnx.system.outputs import StrPath

Item = TypeVar("Item")


class SampleReader(Protocol):
    """A reader of inputs such as onnxruntime's CalibrationDataReader."""

    def get_next(self) -> Mapping[str, ArrayLike] | None:
        """The inputs of the next run by name; None at the end."""


ModelSource = StrPath | onnx.ModelProto
"""The path of a model, or the model itself."""
RuleSource = StrPath | Rules
"""Rules of the caller's own: a Python file that defines RULES and is run, or such a table."""
CalibrationData = StrPath | Mapping[str, ArrayLike] | ArrayLike | Iterable[Any] | SampleReader
"""A file, a folder; arrays [samples, ...] by graph input; one array for the only input; or an iterable of samples or
batches: arrays, dicts, or pairs with labels (a torch DataLoader), or onnxruntime's CalibrationDataReader.
"""
UNNAMED = "the model"
"""Title of a model in memory in messages."""


def model_title(model: ModelSource) -> str:
    """The path of a model as text."""
    return UNNAMED if isinstance(model, onnx.ModelProto) else str(Path(model))


@contextmanager
def as_file(model: ModelSource) -> Iterator[Path]:
    """Yield the file of a model: a temporary one for a model in memory, which errors raised inside do not name.

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


@contextmanager
def result_file(out: StrPath | None) -> Iterator[Path]:
    """Yield the path to which a result is written: a temporary file where ``out`` is None."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        yield Path(folder) / "model.onnx"


def optional_path(path: StrPath | None) -> Path | None:
    """A path, where there is one."""
    return None if path is None else Path(path)


def as_plan(plan: Plan | StrPath | None) -> Plan | None:
    """A plan, read from its file where that is given.

    Raises:
        PlanError: the file is missing or is no plan.
    """
    return plan if plan is None or isinstance(plan, Plan) else load_plan(plan)


def as_rules(rules: RuleSource | None) -> Rules:
    """The standard rules, joined by the caller's.

    Raises:
        OptionError: the caller's rules are no table of rules.
    """
    if rules is None:
        return DEFAULT_RULES
    return extend_rules(rules) if isinstance(rules, Mapping) else read_rules(Path(rules))


def as_samples(calib: CalibrationData | None) -> SampleSource | None:
    """Calibration data as a path, or as arrays by graph input.

    Raises:
        DataError: an iterable gives no sample, or items of different forms.
    """
    if calib is None or isinstance(calib, str | PathLike):
        return optional_path(calib)
    return as_arrays(calib, IN_MEMORY_TITLE)


def several(given: Any, kind: type[Item]) -> tuple[Item, ...]:
    """One value or several, as a tuple."""
    alone = isinstance(given, str | PathLike | Real)
    return (kind(given),) if alone else tuple(kind(value) for value in given)  # type: ignore[call-arg]

"""The strategies: how each opens its data, and the objective that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leanonnx.commands.finetune.measurement import measurement_objective, open_measurements
from leanonnx.commands.finetune.noise import noise2inverse_objective, noise2self_objective
from leanonnx.commands.finetune.objectives import Objective, Scene
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.strategies import Strategy
from leanonnx.commands.finetune.teaching import school_objective, supervised_objective
from leanonnx.data.samples import Dataset, open_data
from leanonnx.data.splits import open_splits
from leanonnx.errors import DataError
from leanonnx.graph.model import Model
from leanonnx.runtime.observation import Shapes
from leanonnx.spelling import option

OpenData = Callable[[Path, Model, Shapes, FinetuneOptions], Dataset]


@dataclass(frozen=True)
class Signal:
    """One strategy: ``open_data`` opens the model's inputs and all else that ``objective`` needs of a sample."""

    open_data: OpenData
    objective: Callable[[Scene], Objective]


def _open_inputs(path: Path, model: Model, shapes: Shapes, options: FinetuneOptions) -> Dataset:
    return open_data(path, model, shapes, options.images)


def _open_labelled(path: Path, model: Model, shapes: Shapes, options: FinetuneOptions) -> Dataset:
    data = _open_inputs(path, model, shapes, options)
    if data.label_name is None:
        raise DataError(
            f"{path}: holds no labels; add an array 'labels' [samples, ...] to the .npz, or use "
            f"{option('strategy', 'school')}"
        )
    return data


def _open_splits(path: Path, model: Model, shapes: Shapes, options: FinetuneOptions) -> Dataset:
    return open_splits(path, model, shapes)


SIGNALS: Mapping[Strategy, Signal] = {
    "school": Signal(_open_inputs, school_objective),
    "supervised": Signal(_open_labelled, supervised_objective),
    "noise2self": Signal(_open_inputs, noise2self_objective),
    "noise2inverse": Signal(_open_splits, noise2inverse_objective),
    "measurement": Signal(open_measurements, measurement_objective),
}

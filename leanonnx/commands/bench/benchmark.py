"""Measure the latency of one model file, or compare two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import onnx

from leanonnx.checks import check_least
from leanonnx.errors import ModelError, OptionError
from leanonnx.formatting import count_text, shape_text
from leanonnx.graph.model import Model, load
from leanonnx.quantization.saturation import fused_difference, saturation_warnings
from leanonnx.runtime.free_axes import InputShapes
from leanonnx.runtime.observation import Shapes, check_shapes, observe, random_feed
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess, time_in_subprocess
from leanonnx.runtime.timing import DEFAULT_TIMING_SECONDS, Timing, TimingComparison
from leanonnx.runtime.trials import declared_sizes
from leanonnx.spelling import option, option_list
from leanonnx.system.clock import ignore_progress

Dims = list[int | None]
MAX_SECONDS = 3600
"""Largest duration of one comparison."""


@dataclass(frozen=True)
class BenchRequest:
    """Request of ``bench``.

    Attributes:
        shapes: shapes of graph inputs by name; free axes that are not given are found by running the model.
        batches: sizes of the free first axis; empty to leave it as it is.
        threads: numbers of threads; 0 stands for the number of available physical cores.
        setting: all other settings; its ``threads`` and ``libraries`` are ignored.
        libraries: libraries of custom operators.
        seconds: duration of each comparison.
        seed: seed of the inputs and of the confidence interval.

    Raises:
        OptionError: a number is out of range, or the provider does not have such an option.
    """

    shapes: Shapes = field(default_factory=dict)
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (0,)
    setting: Setting = field(default_factory=Setting)
    libraries: tuple[Path, ...] = ()
    seconds: float = DEFAULT_TIMING_SECONDS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= MAX_SECONDS:
            raise OptionError(
                f"{option('seconds', float(self.seconds))}: expected more than 0 and at most {MAX_SECONDS}"
            )
        if self.setting.provider == "cpu" and self.setting.cuda_graph:
            raise OptionError(
                f"{option('cuda_graph')}: the CPU has no CUDA graphs; add {option('provider', 'cuda')}, or leave it out"
            )
        check_least("seed", self.seed, 0)
        for name, values, least in (("batch", self.batches, 1), ("threads", self.threads, 0)):
            for value in values:
                check_least(name, value, least)


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One measurement: requested batch, input sizes, setting, outcome, and warnings about the models."""

    batch: int | None
    inputs: InputShapes
    setting: Setting
    outcome: TimingComparison | Timing
    about_models: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why the numbers may be unreliable, or the outputs."""
        return (*self.busy_warnings, *self.about_models)

    @property
    def busy_warnings(self) -> tuple[str, ...]:
        """Reasons why the numbers may be unreliable."""
        if not self.outcome.is_busy:
            return ()
        signs = self.outcome.busy_signs
        return (f"the machine is busy, or has fewer cores free than threads were asked for: {signs}",)


def run_bench(
    source: Path, other: Path | None, request: BenchRequest, progress: Callable[[str], None] = ignore_progress
) -> tuple[BenchCase, ...]:
    """Time one model, or compare two, for each batch and number of threads, each in a fresh process.

    Raises:
        UserError: bad model or option, missing provider, or models that take different inputs.
    """
    progress("load")
    model = load(source, request.libraries)
    rival = None if other is None else load(other, request.libraries)
    if rival is not None:
        check_same_inputs(model, rival)
    progress("observe")
    check_shapes(model, request.shapes)
    sizes = resolve_input_sizes(model, request.shapes)
    sizes_by_batch = {
        batch: sizes if batch is None else with_batch(model, sizes, batch) for batch in request.batches or (None,)
    }
    for each, inputs in product((model, rival or model), sizes_by_batch.values()):
        check_fits(each, inputs)
    about_models = _integer_warnings([model] if rival is None else [model, rival], request, sizes_by_batch)
    cases = []
    for (batch, inputs), threads in product(sizes_by_batch.items(), request.threads):
        setting = replace(request.setting, threads=threads, libraries=model.libraries).with_thread_count
        progress(
            "measure" + ("" if batch is None else f", batch {batch}") + f", {count_text(setting.threads, 'thread')}"
        )
        cases.append(
            BenchCase(
                batch=batch,
                inputs=inputs,
                setting=setting,
                outcome=_outcome(model, rival, inputs, setting, request),
                about_models=about_models,
            )
        )
    return tuple(cases)


def _integer_warnings(
    models: Sequence[Model], request: BenchRequest, sizes_by_batch: Mapping[int | None, InputShapes]
) -> tuple[str, ...]:
    """A warning if sums of integers saturate on this processor, which makes times of outputs that nobody wants."""
    if request.setting.uses_gpu:
        return ()
    sizes = next(iter(sizes_by_batch.values()))
    differences = {
        str(each.path): fused_difference(each, each.path, [random_feed(each, sizes, request.seed)]) for each in models
    }
    return saturation_warnings(differences, models, "the times are those of the fused kernels")


def _outcome(
    model: Model, rival: Model | None, inputs: InputShapes, setting: Setting, request: BenchRequest
) -> TimingComparison | Timing:
    feed = random_feed(model, inputs, request.seed)
    try:
        if rival is None:
            return time_in_subprocess(model.path, feed, setting, request.seconds)
        return compare_in_subprocess(model.path, rival.path, feed, setting, request.seconds, request.seed)
    except RunFailed as error:
        names = " and ".join(str(each.path) for each in (model, rival) if each is not None)
        given = ", ".join(f"{name}={shape_text(shape)}" for name, shape in inputs.items())
        raise ModelError(
            f"{names}: cannot be timed with inputs {given}: {error}; give other sizes with "
            f"{option_list('shape', 'batch', last='or')}"
        ) from error


def resolve_input_sizes(model: Model, given: Shapes) -> InputShapes:
    """Sizes of all inputs: as given, as declared, or else as observed in a run of the model."""
    shapes = {v.name: tuple(given.get(v.name, _dims(v))) for v in model.inputs}
    if not all(isinstance(size, int) for shape in shapes.values() for size in shape):
        shapes = {name: array.shape for name, array in observe(model, given).feeds.items()}
    return {name: tuple(size for size in shape if size is not None) for name, shape in shapes.items()}


def _dims(value: onnx.ValueInfoProto) -> Dims:
    """Declared sizes; None for a free axis."""
    return [axis if isinstance(axis, int) else None for axis in declared_sizes(value)]


def with_batch(model: Model, sizes: InputShapes, batch: int) -> InputShapes:
    """Replace the first size of all inputs whose first axis is free.

    Raises:
        OptionError: no input has a free first axis, and the first input's is fixed to another size.
    """
    free = {v.name for v in model.inputs if _dims(v)[:1] == [None]}
    if not free and all(_dims(v)[:1] != [batch] for v in model.inputs[:1]):
        raise OptionError(
            f"{option('batch', batch)}: {model.path} fixes the first axis of its inputs ({_inputs_text(model)}); "
            f"leave out {option('batch')}, or export the model with a free batch axis"
        )
    return {name: (batch, *shape[1:]) if name in free else shape for name, shape in sizes.items()}


def check_same_inputs(model: Model, rival: Model) -> None:
    """Check that two models agree on names, types, ranks and declared sizes of their inputs.

    Raises:
        OptionError: they differ.
    """
    mine, others = ([_signature(v) for v in each.inputs] for each in (model, rival))
    pairs = zip(sorted(mine), sorted(others), strict=False)
    if len(mine) != len(others) or any(a[:2] != b[:2] or not _agree(a[2], b[2]) for a, b in pairs):
        raise OptionError(
            f"{rival.path} takes {_inputs_text(rival)}, but {model.path} takes {_inputs_text(model)}; "
            "give models that take the same inputs"
        )


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, Dims]:
    return value.name, value.type.tensor_type.elem_type, _dims(value)


def _agree(left: Sequence[int | None], right: Sequence[int | None]) -> bool:
    """Return True if one tensor can have both shapes."""
    return len(left) == len(right) and all(None in (a, b) or a == b for a, b in zip(left, right, strict=True))


def _inputs_text(model: Model) -> str:
    kinds = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in model.inputs}
    shapes = {v.name: _dims_text(v) for v in model.inputs}
    return ", ".join(f"'{name}' {kinds[name]}[{shapes[name]}]" for name in shapes) or "no inputs"


def _dims_text(value: onnx.ValueInfoProto) -> str:
    return shape_text("?" if d is None else d for d in _dims(value))


def check_fits(model: Model, inputs: InputShapes) -> None:
    """Check that input sizes fit the declared ones.

    Raises:
        OptionError: an axis of an input is fixed to another size.
    """
    for value in model.inputs:
        if not _agree(_dims(value), inputs[value.name]):
            raise OptionError(
                f"{model.path}: its input '{value.name}' is {_dims_text(value)}, which "
                f"{shape_text(inputs[value.name])} does not fit; give other sizes with "
                f"{option_list('shape', 'batch', last='or')}"
            )

"""Sizes to try for the free axes of a model, and an estimate of what a run at a size takes, from smaller runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.errors import ModelError
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.runtime.free_axes import IMAGE_INPUT_RANK, InputShapes
from leanonnx.spelling import option

DeclaredSizes = list[int | str]
"""Declared sizes of a tensor; a free axis is given by its name, or ``UNNAMED_AXIS`` if it has none."""
UNNAMED_AXIS = "?"
TRIAL_SIZES = (224, 256, 320, 128, 96, 64, 512, 640, 48, 32, 16, 8, 1)
TRIAL_LENGTHS = (6144, 16384, 1024)
TRIAL_CHANNELS = (3, 1)
MAX_TRIAL_ELEMENTS = 1 << 24
"""Largest number of elements in the graph inputs of a trial."""
MAX_INPUT_ELEMENTS = 1 << 30
"""Largest number of elements in the graph inputs of a run."""
MAX_TENSOR_ELEMENTS = 1 << 26
"""Largest number of elements that any tensor of a trial may be expected to have."""
MAX_OUTPUT_ELEMENTS = 1 << 24
"""Largest number of elements that the graph outputs of a trial may be expected to have together.

A proof holds those of all its inputs, of both models.
"""
MAX_TENSOR_GROWTH = 2
"""A further run may have tensors this many times as large as those of the first, even if these are larger than that."""
MAX_EXPONENT = 2.0
"""Highest power of the number of input elements with which a tensor is expected to grow."""
MAX_UNPROBED_ELEMENTS = 1 << 14
"""Largest number of elements in the graph inputs of a trial that needs no smaller one before it."""
MAX_BLIND_ELEMENTS = 1 << 21
"""Largest number of elements in the graph inputs of a trial before which no smaller one has run."""
PROBE_SHARE = 16
"""A probe has at most one part in this many of the elements of the first trial, or of a larger probe that has run."""
PROBE_COUNT = 2
"""Number of probes that have to run."""


@dataclass(frozen=True)
class TensorSizes:
    """Shapes of the graph inputs of a run, and the number of elements of each tensor."""

    inputs: InputShapes
    elements: Floats

    @property
    def count(self) -> int:
        """Number of elements of the graph inputs."""
        return element_count(self.inputs)


@dataclass(frozen=True)
class SizeLimits:
    """Largest numbers of elements: of any ``tensor``, and of all graph ``outputs`` together."""

    tensor: float = MAX_TENSOR_ELEMENTS
    outputs: float = MAX_OUTPUT_ELEMENTS


class Growth:
    """Sizes of all tensors in the runs so far, and an estimate of their sizes in larger runs.

    ``outputs`` are the places of the graph outputs among the tensors.
    """

    def __init__(self, outputs: Sequence[int] = ()) -> None:
        self.outputs = list(outputs)
        self.runs: list[TensorSizes] = []

    def add_run(self, inputs: InputShapes, shapes: Sequence[Array]) -> None:
        """Record the shapes of the tensors, always the same ones, in one more run."""
        elements = np.array([max(math.prod(map(int, shape)), 1) for shape in shapes], np.float64)
        self.runs.append(TensorSizes(inputs, elements))

    def expected_elements(self, inputs: InputShapes) -> Floats:
        """Expected number of elements of each tensor; of none if nothing is known.

        A tensor grows with a power of the number of input elements, which follows from two runs at smaller sizes.
        After a single one it is taken to be proportional to that number.
        """
        count = element_count(inputs)
        smaller = sorted((run for run in self.runs if 0 < run.count <= count), key=lambda run: run.count)
        below = [run for run in smaller if is_within(run.inputs, inputs)] or smaller[-1:]
        if not below:
            return np.zeros(0)
        first, last = below[0], below[-1]
        exponents = np.ones(1)
        if first.count < last.count:
            slopes = np.log(last.elements / first.elements) / math.log(last.count / first.count)
            exponents = np.clip(slopes, 0, MAX_EXPONENT)
        return np.asarray(last.elements * (count / last.count) ** exponents)

    def largest_tensor(self, inputs: InputShapes) -> float:
        """Expected number of elements of the largest tensor; 0 if nothing is known."""
        return float(self.expected_elements(inputs).max(initial=0))

    def output_elements(self, inputs: InputShapes) -> float:
        """Expected number of elements of all graph outputs together; 0 if nothing is known."""
        elements = self.expected_elements(inputs)
        return float(elements[self.outputs].sum()) if elements.size else 0.0

    def permits(self, inputs: InputShapes, limits: SizeLimits = SizeLimits()) -> bool:
        """True if no tensor, and not the graph outputs together, are expected to exceed the limits."""
        return self.largest_tensor(inputs) <= limits.tensor and self.output_elements(inputs) <= limits.outputs


def is_within(inputs: InputShapes, others: InputShapes) -> bool:
    """True if no axis of the inputs is longer than in the others."""
    return all(a <= b for name, shape in inputs.items() for a, b in zip(shape, others[name], strict=True))


def further_limits(growth: Growth, base: InputShapes) -> SizeLimits:
    """The limits of further runs, given the sizes of the first."""
    return SizeLimits(
        tensor=max(MAX_TENSOR_ELEMENTS, MAX_TENSOR_GROWTH * growth.largest_tensor(base)),
        outputs=max(MAX_OUTPUT_ELEMENTS, MAX_TENSOR_GROWTH * growth.output_elements(base)),
    )


def element_count(inputs: Mapping[str, tuple[int, ...]]) -> int:
    """Number of elements of all graph inputs together."""
    return sum(math.prod(shape) for shape in inputs.values())


def probe_shapes(trials: Sequence[InputShapes], growth: Growth) -> Iterator[InputShapes]:
    """Yield small trials until enough of them have run to estimate the others; none if the first is small itself.

    The smaller of two is made first, so that it can forbid the larger one; then one between them, or a smaller one,
    takes its place.
    """
    first = element_count(trials[0])
    small = sorted((shapes for shapes in trials if is_within(shapes, trials[0])), key=element_count, reverse=True)
    small = [shapes for shapes in small if 0 < element_count(shapes) <= first // PROBE_SHARE]
    if not small or first <= MAX_UNPROBED_ELEMENTS:
        return
    pair = [shapes for shapes in small if element_count(shapes) <= element_count(small[0]) // PROBE_SHARE][:1]
    pair.append(small[0])
    yield from (shapes for shapes in pair if growth.permits(shapes))
    others = [shapes for shapes in small if shapes not in pair]
    for shapes in reversed(others):
        if len(growth.runs) == 1 and element_count(shapes) > growth.runs[0].count and growth.permits(shapes):
            yield shapes
    for shapes in others:
        last = min((run.count for run in growth.runs), default=first)
        if len(growth.runs) < PROBE_COUNT and element_count(shapes) <= last // PROBE_SHARE:
            yield shapes


def permitted_trials(trials: Sequence[InputShapes], growth: Growth) -> Iterator[InputShapes]:
    """Yield the trials that the runs before permit, in order; those that nothing is known about come last.

    The smallest trial is always made.
    """
    smallest = min(map(element_count, trials))
    postponed = []
    for shapes in trials:
        count = element_count(shapes)
        if count > max(smallest, MAX_BLIND_ELEMENTS) and not growth.largest_tensor(shapes):
            postponed.append(shapes)
        elif count <= smallest or growth.permits(shapes):
            yield shapes
    yield from (shapes for shapes in sorted(postponed, key=element_count) if growth.permits(shapes))


def trial_shapes(model: Model, given: Mapping[str, tuple[int, ...]]) -> list[InputShapes]:
    """Return the shapes to try: a free first axis is a batch of one or a long record, other free axes share one size.

    Free channels of an image are 3 or 1.  With several inputs, free axes of all but the first are also tried as 1
    (recurrent state).  Trials of more than ``MAX_TRIAL_ELEMENTS`` elements are left out, unless all are larger.

    Raises:
        ModelError: all are too large to be run.
    """
    trials: list[InputShapes] = []
    declared = {value.name: declared_sizes(value) for value in model.inputs}
    for lead, size in [*((1, s) for s in TRIAL_SIZES), *((n, 1) for n in TRIAL_LENGTHS)]:
        for other, channels in itertools.product((size, 1), TRIAL_CHANNELS):
            pairs = zip(declared.items(), [size, *[other] * len(declared)], strict=False)
            shapes = {name: given.get(name) or _fill_shape(dims, lead, s, channels) for (name, dims), s in pairs}
            if shapes not in trials:
                trials.append(shapes)
    least = min(map(element_count, trials))
    if least > MAX_INPUT_ELEMENTS:
        raise ModelError(
            f"{model.path}: the graph inputs hold {least} numbers, more than can be run; give smaller sizes with "
            f"{option('shape')} where the model leaves them free"
        )
    return [shapes for shapes in trials if element_count(shapes) <= MAX_TRIAL_ELEMENTS] or trials[:1]


def declared_sizes(value: onnx.ValueInfoProto) -> DeclaredSizes:
    """Return the sizes of a tensor as the model declares them."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or UNNAMED_AXIS for d in dims]


def _fill_shape(dims: DeclaredSizes, lead: int, size: int, channels: int) -> tuple[int, ...]:
    """Fill free axes: the first with ``lead``, the second of an image with ``channels``, others with ``size``."""
    free = [lead, channels if len(dims) == IMAGE_INPUT_RANK else size, *[size] * len(dims)]
    return tuple(d if isinstance(d, int) else free[axis] for axis, d in enumerate(dims))

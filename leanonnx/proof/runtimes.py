"""The second oracle: one model in two runtimes, which have to agree on its outputs.

The proof compares two models in onnxruntime, and cannot see an error of onnxruntime itself.  Here the model as written
is run by onnxruntime with all optimisations and without any, and by the reference evaluator of ONNX.  Where two of them
differ, the original tells whether it is theirs: fused integer kernels, half precision, and faults of either runtime
show on the original as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanonnx.formatting import count_text
from leanonnx.graph.formats import (
    HALF_TYPES,
    ElementTypes,
    Source,
    convert_feed,
    convert_to_float32,
    float_types,
    load_proto,
    number_format,
)
from leanonnx.graph.model import Model, first_line, raise_if_machine_failed
from leanonnx.inputs.random import nudge_floats
from leanonnx.numeric.arrays import Array
from leanonnx.proof.compare import ComparedChannels, output_floors, relative_error
from leanonnx.proof.noise import fix_random_operators
from leanonnx.proof.proof import ERROR_BOUNDS, FAILED, PASSED, ROUNDING_SHARES
from leanonnx.proof.reference_operators import reference_evaluator
from leanonnx.proof.sides import NOISE_FACTOR, NUDGE_TARGETS, WIDEST_BOUND, Sides, open_side
from leanonnx.runtime.sessions import Feed, RunFailed, run

OPTIMISED = "onnxruntime with all optimisations"
UNOPTIMISED = "onnxruntime without optimisations"
REFERENCE = "the reference evaluator of ONNX"
ALIKE = "as the original"
NOT_RUN = "not run"
HALF_BOUND = 2e-2
"""Relative error up to which two runtimes agree on a model in half precision."""
MAX_REFERENCE_MACS = 200_000_000
"""Multiply-adds up to which the reference evaluator, which is numpy and loops in Python, takes seconds."""
MAX_REFERENCE_INPUTS = 3
Rows = list[list[Array]]
"""Outputs of a model, for each input."""
Runtime = Callable[[Source, Sequence[Feed]], Rows]


@dataclass(frozen=True, kw_only=True)
class RuntimeComparison:
    """Outputs of the written model in two runtimes.

    Attributes:
        runtimes: the names of both.
        status: ``passed``, ``failed``; ``as the original``: the two differ on the original too, the model amplifies a
            change in the last place, or it computes in integers; ``not run``.
        output: the output with the largest error; empty if it was not run.
        max_relative_error, bound: that error, and the limit that was applied.
        original_error: the same on the original; None where that was not needed, or one runtime cannot run it.
        inputs: number of inputs.
        reason: why it was not run.
    """

    runtimes: tuple[str, str]
    status: str
    output: str = ""
    max_relative_error: float = 0.0
    bound: float = 0.0
    original_error: float | None = None
    inputs: int = 0
    reason: str = ""

    @property
    def is_wrong(self) -> bool:
        """True if the two differ, and nothing but the result explains it."""
        return self.status == FAILED


class NotRun(Exception):
    """A runtime cannot run a model."""


def compare_runtimes(
    model: Model,
    written: Source,
    feeds: Sequence[Feed],
    macs: int,
    replaced: ElementTypes = frozenset(),
    channels: ComparedChannels | None = None,
) -> tuple[RuntimeComparison, ...]:
    """Run the written model in three runtimes, and compare onnxruntime without optimisations with the other two.

    Args:
        model: the original.
        written: the compressed model.
        feeds: inputs of the model, those at the usual sizes first.
        macs: multiply-adds of the original, which the reference evaluator may have to run.
        replaced: number formats that onnxruntime cannot run, replaced by float32.
        channels: channel ids of the original's tensors, and the keep mask of the written model.

    Raises:
        RunFailed: onnxruntime cannot run the written model.
    """
    original, candidate = (
        convert_to_float32(load_proto(side), replaced) if replaced else side for side in (model.path, written)
    )
    numbers = load_proto(candidate)
    kind = number_format(numbers)
    half = not replaced and bool(float_types(numbers) & HALF_TYPES)
    sides = Sides(
        original=original,
        reference=original,
        candidate=candidate,
        libraries=model.libraries,
        channels=channels or ComparedChannels(),
        bound=max(ERROR_BOUNDS[kind], HALF_BOUND if half else 0.0),
        rounding=ROUNDING_SHARES[kind],
        optimise=False,
    )
    with fix_random_operators(model, sides) as draws:
        if draws.reason:
            reason = f"the model draws random numbers that cannot be made equal ({draws.reason})"
            return tuple(
                RuntimeComparison(runtimes=(UNOPTIMISED, other), status=NOT_RUN, reason=reason)
                for other in (OPTIMISED, REFERENCE)
            )
        drawn = [draws.add_draws(convert_feed(feed, replaced)) for feed in feeds]
        outputs = [value.name for value in model.proto.graph.output]
        used, rows = _run_candidate(draws.sides, drawn)
        pair = _Pair(outputs=outputs, sides=draws.sides, feeds=used, plain=rows, computes_integers=kind == "quantised")
        return pair.compare(OPTIMISED, pair.run_optimised, len(used)), _against_reference(pair, macs)


def _run_candidate(sides: Sides, feeds: Sequence[Feed]) -> tuple[list[Feed], Rows]:
    """The inputs on which the written model runs without optimisations, and its outputs.

    The proof has shown that it runs wherever the original does.

    Raises:
        RunFailed: it runs on none.
    """
    used: list[Feed] = []
    rows: Rows = []
    failure = RunFailed("there are no inputs")
    with open_side(sides.candidate, True, (), False, sides.libraries) as once:
        for feed in feeds:
            try:
                rows.append(once(sides.candidate_feed(feed)))
                used.append(feed)
            except RunFailed as error:
                failure = error
    if not used:
        raise failure
    return used, rows


def _against_reference(pair: _Pair, macs: int) -> RuntimeComparison:
    skipped = RuntimeComparison(runtimes=(UNOPTIMISED, REFERENCE), status=NOT_RUN)
    if macs > MAX_REFERENCE_MACS:
        return replace(skipped, reason=f"{count_text(macs, 'multiply-add')}, and it is run up to {MAX_REFERENCE_MACS}")
    try:
        return pair.compare(REFERENCE, _evaluate, MAX_REFERENCE_INPUTS)
    except NotRun as error:
        return replace(skipped, reason=str(error))


def _evaluate(source: Source, feeds: Sequence[Feed]) -> Rows:
    """Outputs of a model in the reference evaluator.

    Raises:
        NotRun: it lacks an operator, or fails.
    """
    try:
        with np.errstate(all="ignore"):
            evaluator = reference_evaluator(load_proto(source))
            return [[np.asarray(value) for value in evaluator.run(None, feed)] for feed in feeds]
    except NotImplementedError as error:
        raise NotRun(f"it lacks an operator: {first_line(error)}") from error
    except Exception as error:  # its operators raise what numpy raises
        raise_if_machine_failed(error)
        raise NotRun(f"it cannot run this model: {first_line(error)}") from error


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The written model and its original, on the same inputs (those of the original), and what the former computes."""

    outputs: Sequence[str]
    sides: Sides
    feeds: Sequence[Feed]
    plain: Rows
    computes_integers: bool

    def compare(self, name: str, other: Runtime, count: int) -> RuntimeComparison:
        """Compare onnxruntime without optimisations with another runtime on the first inputs.

        Raises:
            NotRun: the other runtime cannot run the model.
            RunFailed: onnxruntime cannot.
        """
        feeds = self.feeds[:count]
        cut = [self.sides.candidate_feed(feed) for feed in feeds]
        plain = self.plain[:count]
        errors = _errors(plain, other(self.sides.candidate, cut))
        worst = int(np.argmax(errors))
        row = RuntimeComparison(
            runtimes=(UNOPTIMISED, name),
            status=PASSED,
            output=self.outputs[worst],
            max_relative_error=errors[worst],
            bound=self.sides.bound,
            inputs=len(feeds),
        )
        if errors[worst] <= self.sides.bound:
            return row
        nudged = [_errors(plain, self._run_plain(self.sides.candidate, _nudge_all(cut, to))) for to in NUDGE_TARGETS]
        noise = [NOISE_FACTOR * max(each[k] for each in nudged) for k in range(len(errors))]
        limits = [max(self.sides.bound, limit) for limit in noise]
        bounds = np.minimum(limits, WIDEST_BOUND)
        worst = int(np.argmax(np.divide(errors, bounds)))
        row = replace(row, output=self.outputs[worst], max_relative_error=errors[worst], bound=float(bounds[worst]))
        if errors[worst] <= bounds[worst]:
            return row
        return replace(row, **self._ask_original(feeds, other, errors, limits, worst))

    def _ask_original(
        self, feeds: Sequence[Feed], other: Runtime, errors: list[float], limits: list[float], worst: int
    ) -> dict[str, Any]:
        """Status and error of the original: a failure if it does not differ as much between the two runtimes.

        It is a failure too, without an error of the original, where one of them cannot run the original.
        """
        try:
            own = _errors(self._run_plain(self.sides.original, feeds), other(self.sides.original, feeds))
        except (NotRun, RunFailed):
            own = None
        failed = own is None or any(
            error > max(limit, NOISE_FACTOR * mine) for error, limit, mine in zip(errors, limits, own, strict=True)
        )
        status = FAILED if failed and not self.computes_integers else ALIKE
        return {"status": status, "original_error": own and own[worst]}

    def _run_plain(self, source: Source, feeds: Sequence[Feed]) -> Rows:
        """Outputs in onnxruntime without optimisations."""
        return run(source, feeds, optimise=False, libraries=self.sides.libraries)

    def run_optimised(self, source: Source, feeds: Sequence[Feed]) -> Rows:
        """Outputs in onnxruntime with all optimisations."""
        return run(source, feeds, optimise=True, libraries=self.sides.libraries)


def _nudge_all(feeds: Sequence[Feed], to: float) -> list[Feed]:
    return [nudge_floats(feed, to) for feed in feeds]


def _errors(wanted: Rows, computed: Rows) -> list[float]:
    """The largest relative error of each output over all inputs."""
    floors = output_floors(wanted)
    return [
        max(relative_error(one[k], two[k], floor) for one, two in zip(wanted, computed, strict=True))
        for k, floor in enumerate(floors)
    ]

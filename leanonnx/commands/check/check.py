"""Compare a new model (NEW) with the one that it is to replace (BASE), gate by gate.

If NEW is invalid, has another interface or does not run, it fails that gate, and gates that can no longer be judged are
skipped with the reason.  A BASE that cannot be used is the user's error.

Outputs are compared on the CPU, on real or else random inputs; latency is measured on the requested provider.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from leanonnx.analysis.cost import cost_model, count_params
from leanonnx.analysis.dag import build_channel_dag
from leanonnx.commands.bench import benchmark
from leanonnx.commands.check import verdicts
from leanonnx.commands.check.denormals import denormal_weights
from leanonnx.commands.check.gates import (
    AGREEMENT,
    BATCHES,
    DENORMALS,
    GATES,
    INTERFACE,
    LATENCY_MS,
    LIMITED_GATES,
    MACS,
    PARAMS,
    RUNS,
    SIZE,
    SPEEDUP,
    VALID,
    GateLimit,
)
from leanonnx.commands.check.interface import interface_changes
from leanonnx.commands.check.scores import check_score, score_verdicts
from leanonnx.commands.check.sizes import MIN_SAMPLES, InputSource, batch_axes, compare_at_sizes, fit_samples
from leanonnx.commands.check.telling import integer_notes, vacuous_outputs
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED, Verdict, status_of
from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.data.samples import Dataset, ImageFormat, batch_size, data_from_feeds, open_data, with_runnable_batch
from leanonnx.errors import LeanOnnxError, ModelError, OptionError, ProviderMissing
from leanonnx.evaluation.deviation import Fidelity, OutputAxes, compare_outputs
from leanonnx.evaluation.plausibility import data_remarks
from leanonnx.evaluation.slices import channel_axes
from leanonnx.evaluation.user_scores import ScoreFunction
from leanonnx.graph.formats import ElementTypes, convert_feed, stand_in
from leanonnx.graph.model import Model, check_model, load
from leanonnx.inputs.random import INPUT_KINDS, random_inputs
from leanonnx.numeric.arrays import Array
from leanonnx.proof.proof import is_optimised
from leanonnx.reporting.builders import fidelity_row
from leanonnx.reporting.remarks import metric_text
from leanonnx.runtime.free_axes import InputShapes
from leanonnx.runtime.observation import Observation, check_shapes, observe, random_feed
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.spelling import option, option_list
from leanonnx.system.clock import Clock, Progress, ignore_progress

SAMPLES_PER_KIND = 4
"""Number of random samples of each kind of numbers."""
MAX_TIMING_ATTEMPTS = 3
"""Largest number of timings while the comparison is too noisy."""
MAX_PLAIN_RANK = 2
"""Largest rank of outputs whose last axis is their channel axis."""


@dataclass(frozen=True)
class CheckRequest:
    """Request of ``check``.

    Attributes:
        limits: limits by the name of their gate.
        data: real inputs; None for random ones.
        images: conversion of photographs among them into tensors.
        score: a function of a model's path and samples to a score, or its name; the gate on it needs real inputs.
        timed: request of the latency measurement: sizes, batches, threads, provider, libraries and seed.
        skip_missing: skip the latency gates, instead of raising, if the provider is missing.
    """

    limits: Mapping[str, GateLimit] = field(default_factory=dict)
    data: Path | None = None
    images: ImageFormat = field(default_factory=ImageFormat)
    score: str | ScoreFunction | None = None
    timed: benchmark.BenchRequest = field(default_factory=benchmark.BenchRequest)
    skip_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckOutcome:
    """Verdicts on all gates in order, with the measurements behind them.

    Attributes:
        verdicts: one for each gate that is always checked or was requested.
        notes: changes that break no caller, and reasons to doubt numbers.
        fidelities: deviation of NEW from BASE by the source of the inputs.
        further: the same at further sizes.
        cases: the latency measurements.
        seconds: seconds by stage.
    """

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    fidelities: Mapping[str, Fidelity]
    further: Mapping[str, Fidelity]
    cases: tuple[benchmark.BenchCase, ...]
    seconds: Mapping[str, float]

    @property
    def failed_gates(self) -> tuple[str, ...]:
        """Names of the gates that NEW failed."""
        return tuple(verdict.gate for verdict in self.verdicts if verdict.status == FAILED)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Both models, the observation of BASE, inputs by their source, and a source of inputs at further sizes."""

    base: Model
    new: Model
    observation: Observation
    inputs: Mapping[str, Dataset]
    sizes: InputShapes
    more: InputSource


@dataclass(frozen=True)
class _Values:
    """Verdicts on NEW's outputs, and their deviation from BASE's at the first size and at further ones."""

    verdicts: Sequence[Verdict]
    fidelities: Mapping[str, Fidelity] = field(default_factory=dict)
    further: Mapping[str, Fidelity] = field(default_factory=dict)


def run_check(
    base_path: Path, new_path: Path, request: CheckRequest, progress: Progress = ignore_progress
) -> CheckOutcome:
    """Compare the model at ``new_path`` with the one at ``base_path``.

    Raises:
        UserError: BASE cannot be used, NEW does not exist, BASE does not take the data, or an option is wrong.
        ProviderMissing: the provider is missing (unless ``skip_missing``).
    """
    clock = Clock(progress)
    check_score(request.limits, request.score, request.data)
    libraries = request.timed.libraries
    with clock.stage("load"):
        base = load(base_path, libraries)
        new = _load_or_reason(new_path, base)
    check_shapes(base, request.timed.shapes)
    if isinstance(new, str):
        return _result(request, clock, [Verdict(gate=VALID, status=FAILED, detail=new)], "NEW is not valid")
    changes = interface_changes(base, new)
    gates = [
        Verdict(gate=VALID, status=PASSED),
        Verdict(gate=INTERFACE, status=status_of(not changes.faults), detail="; ".join(changes.faults)),
        _denormal_verdict(base, new),
        *_count_verdicts(
            request.limits,
            {SIZE: lambda: (new.size, base.size), PARAMS: lambda: (count_params(new), count_params(base))},
        ),
    ]
    if changes.faults:
        return _result(request, clock, gates, "the interface is not that of BASE", changes.notes)
    with clock.stage("observe"):
        pair = _pair_with_inputs(base, new, request)
    with clock.stage("compare"):
        values = _compare_outputs(pair, request.limits)
    if any(verdict.gate == RUNS and verdict.status == FAILED for verdict in values.verdicts):
        return _result(request, clock, [*gates, *values.verdicts], "NEW does not run", changes.notes)
    with clock.stage("compare"):
        limits, shapes = request.limits, pair.observation.shapes
        gates += score_verdicts(limits, request.score, request.data, request.images, (base, new), shapes)
    with clock.stage("analyse"):
        costs = _count_verdicts(request.limits, {MACS: lambda: (_macs(new, pair.sizes), _macs(base, pair.sizes))})
    with clock.stage("measure"):
        latency, cases = _latency_verdicts(pair, request, progress)
    notes = [*changes.notes, *integer_notes((base, new), pair.inputs)]
    notes += _measurement_notes(request, values, pair.inputs, cases)
    return _result(request, clock, [*gates, *values.verdicts, *costs, *latency], "", notes, values, cases)


def _result(
    request: CheckRequest,
    clock: Clock,
    gates: Sequence[Verdict],
    reason: str,
    notes: Sequence[str] = (),
    values: _Values | None = None,
    cases: tuple[benchmark.BenchCase, ...] = (),
) -> CheckOutcome:
    """The result, with all requested gates in order; those without a verdict are skipped for the given reason."""
    by_name = {verdict.gate: verdict for verdict in gates}
    names = [name for name in GATES if name not in LIMITED_GATES or name in request.limits]
    ordered = tuple(by_name.get(name, Verdict(gate=name, status=SKIPPED, detail=reason)) for name in names)
    first, further = (values.fidelities, values.further) if values else ({}, {})
    return CheckOutcome(
        verdicts=ordered, notes=tuple(notes), fidelities=first, further=further, cases=cases, seconds=clock.seconds
    )


def _load_or_reason(path: Path, base: Model) -> Model | str:
    """Load NEW, or return why it is invalid; a missing or unreadable file is the user's error."""
    try:
        new = load(path, base.libraries)
        if new.repaired and not base.repaired:
            check_model(path)
        return new
    except ModelError as error:
        if not path.is_file() or not os.access(path, os.R_OK):
            raise
        return str(error)


def _count_verdicts(
    limits: Mapping[str, GateLimit], numbers: Mapping[str, Callable[[], tuple[int, int]]]
) -> list[Verdict]:
    """Verdicts on the requested numbers of NEW and BASE."""
    return [verdicts.count_verdict(name, limits[name], *both()) for name, both in numbers.items() if name in limits]


def _macs(model: Model, sizes: InputShapes) -> int:
    dag = build_channel_dag(model, observe(model, sizes))
    return cost_model(dag)(dag.all_alive).macs


def _denormal_verdict(base: Model, new: Model) -> Verdict:
    """Verdict on denormal weights, which slow processors down unless onnxruntime flushes them to zero."""
    before, after = denormal_weights(base), denormal_weights(new)
    worst = sorted(after.items(), key=lambda pair: -pair[1])[:3]
    text = ", ".join(f"{count} in '{name}'" for name, count in worst)
    count, most = sum(after.values()), sum(before.values())
    return Verdict(gate=DENORMALS, status=status_of(count <= most), detail=text, measured=count, limit=most, base=most)


def _pair_with_inputs(base: Model, new: Model, request: CheckRequest) -> _Pair:
    """Both models with inputs: real ones, or ``SAMPLES_PER_KIND`` random samples of each kind used by the proof."""
    observation, seed = observe(base, request.timed.shapes), request.timed.seed
    sizes = {value.name: observation.shapes[value.name] for value in base.inputs}
    if request.data is None:
        if request.images != ImageFormat():
            raise OptionError(f"{option_list(*IMAGE_OPTIONS)} go with {option('data')}; leave them out")
        samples = [random_feed(base, sizes, seed + k) for k in range(MIN_SAMPLES)]
        more = InputSource("random normal inputs", samples, lambda at, k: random_feed(base, at, seed + k))
        return _Pair(
            base=base, new=new, observation=observation, inputs=random_data(base, sizes, seed), sizes=sizes, more=more
        )
    data = with_runnable_batch(open_data(request.data, base, observation.shapes, request.images), base)
    samples = list(islice(data.feeds(1), MIN_SAMPLES))
    samples = [each for each in samples if shapes_of(each) == shapes_of(samples[0])]
    if shapes_of(samples[0]) != sizes:
        observation = observe(base, shapes_of(samples[0]))
    if not request.timed.shapes:
        sizes = shapes_of(samples[0])
    places = batch_axes(base)
    more = InputSource(str(request.data), samples, lambda at, k: fit_samples(samples, at, places, k))
    return _Pair(base=base, new=new, observation=observation, inputs={str(request.data): data}, sizes=sizes, more=more)


def shapes_of(feed: Feed) -> InputShapes:
    """The shape of each input."""
    return {name: value.shape for name, value in feed.items()}


def random_data(model: Model, sizes: InputShapes, seed: int) -> dict[str, Dataset]:
    """Random inputs by kind, each a whole run: those that the proof draws with consecutive seeds."""
    rounds = [random_inputs(model, sizes, seed + k) for k in range(SAMPLES_PER_KIND)]
    kinds = zip(INPUT_KINDS, zip(*rounds, strict=True), strict=True)
    return {
        name: data_from_feeds(name, model, sizes, feeds)
        for name, feeds in ((f"random {k} inputs", f) for k, f in kinds)
    }


def _compare_outputs(pair: _Pair, limits: Mapping[str, GateLimit]) -> _Values:
    """Verdicts on NEW's outputs, and their deviation from BASE's."""
    base, new, replaced = pair.base, pair.new, pair.observation.replaced_formats
    data = next(iter(pair.inputs.values()))
    feed = next(data.feeds(batch_size(data)))
    try:
        base_repeats = _repeats(base, feed, replaced)
    except RunFailed as error:
        raise ModelError(f"{base.path}: onnxruntime cannot run the model: {error}; give other inputs") from error
    axes = _known_axes(pair)
    try:
        new_repeats = _repeats(new, feed, replaced)
        fidelities = {
            name: compare_outputs(base, base.path, [new.path], each, batch_size(each), replaced, axes)[0]
            for name, each in pair.inputs.items()
        }
        at_further_sizes = compare_at_sizes(
            base, new, pair.observation.further_sizes, pair.more, fidelities[pair.more.name], axes, replaced
        )
    except RunFailed as error:
        return _Values([Verdict(gate=RUNS, status=FAILED, detail=str(error))])
    if at_further_sizes.fault:
        return _Values([Verdict(gate=RUNS, status=FAILED, detail=at_further_sizes.fault)])
    all_fidelities = {**fidelities, **at_further_sizes.fidelities}
    batches = (
        at_further_sizes.batches
        if new_repeats
        else Verdict(gate=BATCHES, status=SKIPPED, detail="NEW does not output the same bytes twice")
    )
    gates = [
        Verdict(gate=RUNS, status=PASSED),
        batches,
        verdicts.finite_verdict(all_fidelities),
        verdicts.determinism_verdict(base_repeats, new_repeats),
    ]
    uninformative = vacuous_outputs(base, all_fidelities.values())
    gates += verdicts.value_verdicts(limits, fidelities, at_further_sizes.fidelities, uninformative, base.path)
    return _Values(gates, fidelities, at_further_sizes.fidelities)


def _known_axes(pair: _Pair) -> OutputAxes:
    """Channel axes of the outputs from channel ids, needed where the rank does not determine them."""
    names = [value.name for value in pair.base.proto.graph.output]
    if all(len(pair.observation.shapes.get(name, ())) <= MAX_PLAIN_RANK for name in names):
        return {}
    try:
        return channel_axes(build_channel_dag(pair.base, pair.observation))
    except LeanOnnxError:
        return {}


def _repeats(model: Model, feed: Feed, replaced: ElementTypes) -> bool:
    """Return True if two runs of one session output the same bytes.

    Raises:
        RunFailed: onnxruntime cannot load or run the model.
    """
    fed = convert_feed(feed, replaced)
    optimise = is_optimised(model)
    first, second = run(stand_in(model.path, replaced), [fed, fed], optimise, model.libraries)
    return all(_same_bytes(a, b) for a, b in zip(first, second, strict=True))


def _same_bytes(left: Array, right: Array) -> bool:
    if left.dtype.kind == "O":
        return np.array_equal(left, right)
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def _latency_verdicts(
    pair: _Pair, request: CheckRequest, progress: Progress
) -> tuple[list[Verdict], tuple[benchmark.BenchCase, ...]]:
    """Verdicts on latency; BASE is timed only if a speed-up is required."""
    judges = {LATENCY_MS: verdicts.latency_verdict, SPEEDUP: verdicts.speedup_verdict}
    requested = {name: judge for name, judge in judges.items() if name in request.limits}
    if not requested:
        return [], ()
    timed = replace(request.timed, shapes=pair.sizes)
    first, second = (pair.base.path, pair.new.path) if SPEEDUP in requested else (pair.new.path, None)
    try:
        for _ in range(MAX_TIMING_ATTEMPTS):
            cases = benchmark.run_bench(first, second, timed, progress)
            if not (
                SPEEDUP in requested and any(verdicts.is_too_noisy(request.limits[SPEEDUP], case) for case in cases)
            ):
                break
    except ProviderMissing as error:
        if not request.skip_missing:
            raise ProviderMissing(
                f"{error}, or skip the gates on latency with {option('skip_missing_provider', True)}"
            ) from error
        return [Verdict(gate=name, status=SKIPPED, detail=str(error)) for name in requested], ()
    except ModelError as error:
        return [Verdict(gate=name, status=FAILED, detail=str(error)) for name in requested], ()
    return [judge(request.limits[name], cases) for name, judge in requested.items()], cases


def _measurement_notes(
    request: CheckRequest, values: _Values, inputs: Mapping[str, Dataset], cases: Sequence[benchmark.BenchCase]
) -> list[str]:
    """Notes on the measurements."""
    notes = [warning for case in cases for warning in case.busy_warnings]
    for source, deviation in values.fidelities.items():
        reshaped = [one.output for one in deviation.outputs if one.reshaped]
        notes += [f"output '{name}' had another shape than BASE's on {source}" for name in reshaped]
        metric = fidelity_row(deviation).metric
        notes += [metric_text(metric)] if metric is not None else []
        notes += [deviation.unused] if deviation.unused else []
        notes += data_remarks(inputs[source], deviation) if request.data is not None else ()
    if AGREEMENT in request.limits and request.data is None:
        notes.append(f"{AGREEMENT} was judged on random inputs, which says little of real ones; give {option('data')}")
    provider = request.timed.setting.provider
    if provider != "cpu" and not {LATENCY_MS, SPEEDUP} & set(request.limits):
        notes.append(f"nothing was run on {provider}: no gate on latency was asked for")
    return list(dict.fromkeys(notes))

"""A new model held against the one it is to replace, gate by gate.

What cannot be judged any more, because NEW is no valid model, has another interface or does not run, is skipped and
says why; such a NEW has failed a gate already.  A BASE that cannot be used is the user's error.

Values are compared on the CPU, on real inputs or else on random ones; latency is measured on the provider asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.analysis.cost import cost_model, stored
from leanonnx.analysis.dag import analyse
from leanonnx.commands.bench import benchmark
from leanonnx.commands.check import verdicts
from leanonnx.commands.check.gates import (
    AGREEMENT,
    ASKED,
    BATCHES,
    DENORMALS,
    DEVIATION,
    GATES,
    INTERFACE,
    LATENCY_MS,
    MACS,
    PARAMS,
    RUNS,
    SIZE,
    SPEEDUP,
    VALID,
    Limit,
)
from leanonnx.commands.check.interface import interface_changes
from leanonnx.commands.check.sizes import ROWS, Inputs, at_sizes, batch_places, fitted
from leanonnx.commands.check.telling import untold
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED, Verdict, status_of
from leanonnx.data.samples import Data, ImageFormat, batch_size, made_data, open_data, runnable
from leanonnx.errors import LeanOnnxError, ModelError, OptionError, ProviderMissing
from leanonnx.evaluation.deviation import Axes, Fidelity, compare
from leanonnx.evaluation.slices import channel_axes
from leanonnx.graph.formats import Kinds, fed_in_float32, stand_in
from leanonnx.graph.model import Model, load, tensors
from leanonnx.numeric.arrays import Array
from leanonnx.proof.proof import KINDS, MANY_NODES
from leanonnx.reporting.builders import fidelity_row
from leanonnx.reporting.remarks import metric_text
from leanonnx.runtime.observation import Observation, check_shapes, observe, random_feed
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.system.clock import Clock, Progress, quiet

DRAWS = 4
"""Random samples of each kind of numbers."""
TRIES = 3
"""How often a comparison is made at most, where it is too noisy to tell anything."""
PLAIN_RANK = 2
"""Axes of an output up to which the last is that of the channels."""
STAY_DENORMAL = (onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
"""Types whose denormal numbers are denormal where they are computed with; those of float16 are not, in float32."""
FRACTION_BITS = {2: 7, 4: 23, 8: 52}
"""Bits behind the exponent of bfloat16, float32 and double, by bytes."""


@dataclass(frozen=True)
class CheckRequest:
    """What ``check`` was asked to do.

    Attributes:
        limits: by the name of their gate.
        data: real inputs; None for random ones.
        images: how photographs among them become tensors.
        timed: sizes, batches, threads, provider, libraries and seed.
        skip_missing: skip the gates on latency where the provider is not there, instead of refusing.
    """

    limits: Mapping[str, Limit] = field(default_factory=dict)
    data: Path | None = None
    images: ImageFormat = field(default_factory=ImageFormat)
    timed: benchmark.BenchRequest = field(default_factory=benchmark.BenchRequest)
    skip_missing: bool = False


@dataclass(frozen=True)
class Checked:
    """All gates in their order, and what was found besides.

    Attributes:
        verdicts: one for each gate that is always checked or was asked for.
        notes: changes that break nobody, and what makes numbers doubtful.
        fidelities: how far NEW is from BASE, by what the inputs were.
        further: the same at further sizes.
        cases: the measurements of latency.
        seconds: by stage.
    """

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    fidelities: Mapping[str, Fidelity]
    further: Mapping[str, Fidelity]
    cases: tuple[benchmark.Case, ...]
    seconds: Mapping[str, float]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that NEW has not passed."""
        return tuple(verdict.gate for verdict in self.verdicts if verdict.status == FAILED)


@dataclass(frozen=True)
class _Pair:
    """Both models, with what runs of BASE showed, inputs for both by what they are, and more at further sizes."""

    base: Model
    new: Model
    observation: Observation
    inputs: Mapping[str, Data]
    sizes: benchmark.Sizes
    more: Inputs


@dataclass(frozen=True)
class _Values:
    """Verdicts on what NEW computes, and how far that is from BASE's at the first size and at further ones."""

    verdicts: Sequence[Verdict]
    fidelities: Mapping[str, Fidelity] = field(default_factory=dict)
    further: Mapping[str, Fidelity] = field(default_factory=dict)


def check(base_path: Path, new_path: Path, request: CheckRequest, progress: Progress = quiet) -> Checked:
    """Hold the model at ``new_path`` against the one at ``base_path``.

    Raises:
        UserError: BASE cannot be used, NEW is not there, data that BASE does not take, a wrong option.
        ProviderMissing: the provider is not there (unless ``skip_missing``).
    """
    clock = Clock(progress)
    libraries = request.timed.libraries
    with clock.stage("load"):
        base, new = load(base_path, libraries), _loaded(new_path, libraries)
    check_shapes(base, request.timed.shapes)
    if isinstance(new, str):
        return _told(request, clock, [Verdict(VALID, FAILED, new)], "NEW is not valid")
    changes = interface_changes(base, new)
    found = [
        Verdict(VALID, PASSED),
        Verdict(INTERFACE, status_of(not changes.faults), "; ".join(changes.faults)),
        _denormals(base, new),
        *_counts(request.limits, {SIZE: lambda: (new.size, base.size), PARAMS: lambda: (stored(new), stored(base))}),
    ]
    if changes.faults:
        return _told(request, clock, found, "the interface is not that of BASE", changes.notes)
    with clock.stage("observe"):
        pair = _paired(base, new, request)
    with clock.stage("compare"):
        values = _values(pair, request.limits)
    if any(verdict.gate == RUNS and verdict.status == FAILED for verdict in values.verdicts):
        return _told(request, clock, [*found, *values.verdicts], "NEW does not run", changes.notes)
    with clock.stage("analyse"):
        costs = _counts(request.limits, {MACS: lambda: (_macs(new, pair.sizes), _macs(base, pair.sizes))})
    with clock.stage("measure"):
        latency, cases = _latency(pair, request, progress)
    notes = [*changes.notes, *_remarks(request, values.fidelities, cases)]
    return _told(request, clock, [*found, *values.verdicts, *costs, *latency], "", notes, values, cases)


def _told(
    request: CheckRequest,
    clock: Clock,
    found: Sequence[Verdict],
    reason: str,
    notes: Sequence[str] = (),
    values: _Values | None = None,
    cases: tuple[benchmark.Case, ...] = (),
) -> Checked:
    """Verdicts on all gates that are to be checked; those without one are skipped for the reason given."""
    by_name = {verdict.gate: verdict for verdict in found}
    wanted = [name for name in GATES if name not in ASKED or name in request.limits]
    ordered = tuple(by_name.get(name, Verdict(name, SKIPPED, reason)) for name in wanted)
    first, further = (values.fidelities, values.further) if values else ({}, {})
    return Checked(ordered, tuple(notes), first, further, cases, clock.seconds)


def _loaded(path: Path, libraries: tuple[Path, ...]) -> Model | str:
    """The model, or why it is none; a file that is not there or may not be read is the user's error."""
    try:
        return load(path, libraries)
    except ModelError as error:
        if not path.is_file() or not os.access(path, os.R_OK):
            raise
        return str(error)


def _counts(limits: Mapping[str, Limit], numbers: Mapping[str, Callable[[], tuple[int, int]]]) -> list[Verdict]:
    """Verdicts on the numbers of NEW and of BASE, where they are asked for."""
    return [verdicts.amount(name, limits[name], *both()) for name, both in numbers.items() if name in limits]


def _macs(model: Model, sizes: benchmark.Sizes) -> int:
    dag = analyse(model, observe(model, sizes))
    return cost_model(dag)(dag.whole).macs


def _denormals(base: Model, new: Model) -> Verdict:
    """Weights so small that processors take many times as long for them, unless onnxruntime is told to flush them."""
    before, after = denormal_weights(base), denormal_weights(new)
    worst = sorted(after.items(), key=lambda pair: -pair[1])[:3]
    text = ", ".join(f"{count} in '{name}'" for name, count in worst)
    count, most = sum(after.values()), sum(before.values())
    return Verdict(DENORMALS, status_of(count <= most), text, count, most, most)


def denormal_weights(model: Model) -> dict[str, int]:
    """How many elements of each constant are denormal numbers, where any are.

    They are told by their bits: a processor that a session has set to flush them takes them for zero.
    """
    found: dict[str, int] = {}
    for tensor in tensors(model.proto.graph):
        if tensor.data_type in STAY_DENORMAL:
            array = np.ascontiguousarray(numpy_helper.to_array(tensor))
            fraction = FRACTION_BITS[array.itemsize]
            bits = array.reshape(-1).view(f"u{array.itemsize}") << 1  # without the sign
            count = int(np.count_nonzero((bits != 0) & (bits >> (fraction + 1) == 0)))
            if count:
                found[tensor.name] = found.get(tensor.name, 0) + count
    return found


def _paired(base: Model, new: Model, request: CheckRequest) -> _Pair:
    """Both models with inputs: real ones, or ``DRAWS`` random samples of each kind that the proof uses."""
    observation, seed = observe(base, request.timed.shapes), request.timed.seed
    sizes = {value.name: observation.shapes[value.name] for value in base.inputs}
    if request.data is None:
        if request.images != ImageFormat():
            raise OptionError("--mean, --std, --scale, --layout and --size go with --data; leave them out")
        samples = [random_feed(base, sizes, seed + k) for k in range(ROWS)]
        more = Inputs("random normal inputs", samples, lambda at, k: random_feed(base, at, seed + k))
        return _Pair(base, new, observation, drawn(base, sizes, seed), sizes, more)
    data = runnable(open_data(request.data, base, observation.shapes, request.images), base)
    samples = list(islice(data.feeds(1), ROWS))
    samples = [each for each in samples if shapes_of(each) == shapes_of(samples[0])]
    if shapes_of(samples[0]) != sizes:
        observation = observe(base, shapes_of(samples[0]))
    if not request.timed.shapes:
        sizes = shapes_of(samples[0])
    places = batch_places(base)
    more = Inputs(str(request.data), samples, lambda at, k: fitted(samples, at, places, k))
    return _Pair(base, new, observation, {str(request.data): data}, sizes, more)


def shapes_of(feed: Feed) -> benchmark.Sizes:
    """The shape of each input."""
    return {name: value.shape for name, value in feed.items()}


def drawn(model: Model, sizes: benchmark.Sizes, seed: int) -> dict[str, Data]:
    """Random samples, each a whole run, by the kind of their numbers; those of ``proof.inputs_for`` are the first."""
    found = {}
    for first, kind in enumerate(KINDS, seed):
        feeds = [random_feed(model, sizes, first + k, kind) for k in range(DRAWS)]
        found[f"random {kind} inputs"] = made_data(f"random {kind} inputs", model, sizes, feeds)
    return found


def _values(pair: _Pair, limits: Mapping[str, Limit]) -> _Values:
    """Verdicts on what NEW computes, and how far that is from what BASE computes."""
    base, new, replaced = pair.base, pair.new, pair.observation.replaced
    data = next(iter(pair.inputs.values()))
    feed = next(data.feeds(batch_size(data)))
    try:
        steady = _same_twice(base, feed, replaced)
    except RunFailed as error:
        raise ModelError(f"{base.path}: onnxruntime cannot run the model: {error}; give other inputs") from error
    axes = _known_axes(pair)
    try:
        again = _same_twice(new, feed, replaced)
        found = {
            name: compare(base, base.path, [new.path], each, batch_size(each), replaced, axes)[0]
            for name, each in pair.inputs.items()
        }
        sized = at_sizes(base, new, pair.observation.sizes, pair.more, found[pair.more.name], axes, replaced)
    except RunFailed as error:
        return _Values([Verdict(RUNS, FAILED, str(error))])
    if sized.fault:
        return _Values([Verdict(RUNS, FAILED, sized.fault)])
    every = {**found, **sized.fidelities}
    batches = sized.batches if again else Verdict(BATCHES, SKIPPED, "NEW does not put out the same bytes twice")
    judged = [Verdict(RUNS, PASSED), batches, verdicts.finite(every), verdicts.repeatable(steady, again)]
    same = untold(base, every.values())
    if DEVIATION in limits:
        judged.append(verdicts.deviation(limits[DEVIATION], every, same))
    if AGREEMENT in limits:
        agreed = verdicts.agreement(limits[AGREEMENT], found, same)
        if agreed is None:
            raise OptionError(
                f"--{AGREEMENT}: no output of {base.path} holds classes or whole numbers; use --{DEVIATION}"
            )
        judged.append(agreed)
    return _Values(judged, found, sized.fidelities)


def _known_axes(pair: _Pair) -> Axes:
    """The axes of the outputs that channel labels tell apart, where their ranks do not tell the channels."""
    names = [value.name for value in pair.base.proto.graph.output]
    if all(len(pair.observation.shapes.get(name, ())) <= PLAIN_RANK for name in names):
        return {}
    try:
        return channel_axes(analyse(pair.base, pair.observation))
    except LeanOnnxError:
        return {}


def _same_twice(model: Model, feed: Feed, replaced: Kinds) -> bool:
    """Whether two runs of one session put out the same bytes.

    Raises:
        RunFailed: onnxruntime cannot load or run the model.
    """
    fed = fed_in_float32(feed, replaced)
    optimise = len(model.proto.graph.node) <= MANY_NODES
    first, second = run(stand_in(model.path, replaced), [fed, fed], optimise, model.libraries)
    return all(_same_bytes(a, b) for a, b in zip(first, second, strict=True))


def _same_bytes(left: Array, right: Array) -> bool:
    if left.dtype.kind == "O":
        return np.array_equal(left, right)
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def _latency(
    pair: _Pair, request: CheckRequest, progress: Progress
) -> tuple[list[Verdict], tuple[benchmark.Case, ...]]:
    """Verdicts on latency; both models are timed only where one has to be as fast as the other."""
    judges = {LATENCY_MS: verdicts.latency, SPEEDUP: verdicts.speedup}
    asked = {name: judge for name, judge in judges.items() if name in request.limits}
    if not asked:
        return [], ()
    timed = replace(request.timed, shapes=pair.sizes)
    first, second = (pair.base.path, pair.new.path) if SPEEDUP in asked else (pair.new.path, None)
    try:
        for _ in range(TRIES):
            cases = benchmark.bench(first, second, timed, progress)
            if not (SPEEDUP in asked and any(verdicts.unsure(request.limits[SPEEDUP], case) for case in cases)):
                break
    except ProviderMissing as error:
        if not request.skip_missing:
            raise ProviderMissing(f"{error}, or skip the gates on latency with --skip-missing-provider") from error
        return [Verdict(name, SKIPPED, str(error)) for name in asked], ()
    except ModelError as error:
        return [Verdict(name, FAILED, str(error)) for name in asked], ()
    return [judge(request.limits[name], cases) for name, judge in asked.items()], cases


def _remarks(request: CheckRequest, fidelities: Mapping[str, Fidelity], cases: Sequence[benchmark.Case]) -> list[str]:
    """What is to be said of the measurements."""
    notes = [warning for case in cases for warning in case.warnings]
    for source, found in fidelities.items():
        reshaped = [one.output for one in found.outputs if one.reshaped]
        notes += [f"output '{name}' had another shape than BASE's on {source}" for name in reshaped]
        metric = fidelity_row(found).metric
        if metric is not None:
            notes.append(metric_text(metric))
        if found.unused:
            notes.append(found.unused)
    if AGREEMENT in request.limits and request.data is None:
        notes.append(f"{AGREEMENT} was judged on random inputs, which says little of real ones; give --data")
    provider = request.timed.setting.provider
    if provider != "cpu" and not {LATENCY_MS, SPEEDUP} & set(request.limits):
        notes.append(f"nothing was run on {provider}: no gate on latency was asked for")
    return list(dict.fromkeys(notes))

"""A new model held against the one it is to replace, gate by gate.

What cannot be judged any more, because NEW is no valid model, has another interface or does not run, is skipped and
says why; such a NEW has failed a gate already.  A BASE that cannot be used is the user's error.

Values are compared on the CPU, on real inputs or else on random ones; latency is measured on the provider asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.analysis.cost import cost_model, stored
from leanonnx.analysis.dag import analyse
from leanonnx.benchmarking import benchmark
from leanonnx.checking import verdicts
from leanonnx.checking.gates import (
    AGREEMENT,
    ASKED,
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
from leanonnx.checking.interface import interface_changes
from leanonnx.checking.verdicts import FAILED, PASSED, SKIPPED, Verdict, status_of
from leanonnx.compressing.report import fidelity
from leanonnx.data.samples import Data, ImageFormat, batch_size, made_data, open_data, runnable
from leanonnx.errors import ModelError, OptionError, ProviderMissing
from leanonnx.graph.formats import Kinds, fed_in_float32, stand_in
from leanonnx.graph.model import Model, load, tensors
from leanonnx.numeric.arrays import Array
from leanonnx.proof.deviation import Fidelity, compare
from leanonnx.proof.proof import KINDS, MANY_NODES
from leanonnx.runtime.observation import Observation, check_shapes, observe, random_feed
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.system.clock import Clock, Progress, quiet
from leanonnx.words import metric_text

DRAWS = 4
"""Random samples of each kind of numbers."""
TRIES = 3
"""How often a comparison is made at most, where it is too noisy to tell anything."""
STAY_DENORMAL = (onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
"""Types whose denormal numbers are denormal where they are computed with; those of float16 are not, in float32."""
FRACTION_BITS = {2: 7, 4: 23, 8: 52}
"""Bits behind the exponent of bfloat16, float32 and double, by bytes."""


@dataclass(frozen=True)
class Request:
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
    timed: benchmark.Request = field(default_factory=benchmark.Request)
    skip_missing: bool = False


@dataclass(frozen=True)
class Checked:
    """All gates in their order, and what was found besides.

    Attributes:
        verdicts: one for each gate that is always checked or was asked for.
        notes: changes that break nobody, and what makes numbers doubtful.
        fidelities: how far NEW is from BASE, by what the inputs were.
        cases: the measurements of latency.
        seconds: by stage.
    """

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    fidelities: Mapping[str, Fidelity]
    cases: tuple[benchmark.Case, ...]
    seconds: Mapping[str, float]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that NEW has not passed."""
        return tuple(verdict.gate for verdict in self.verdicts if verdict.status == FAILED)


@dataclass(frozen=True)
class _Pair:
    """Both models, with what a run of BASE showed, and inputs for both by what they are."""

    base: Model
    new: Model
    observation: Observation
    inputs: Mapping[str, Data]
    sizes: benchmark.Sizes


def check(base_path: Path, new_path: Path, request: Request, progress: Progress = quiet) -> Checked:
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
        values, fidelities = _values(pair, request.limits)
    if any(verdict.gate == RUNS and verdict.status == FAILED for verdict in values):
        return _told(request, clock, found + values, "NEW does not run", changes.notes)
    with clock.stage("analyse"):
        costs = _counts(request.limits, {MACS: lambda: (_macs(new, pair.sizes), _macs(base, pair.sizes))})
    with clock.stage("measure"):
        latency, cases = _latency(pair, request, progress)
    notes = [*changes.notes, *_remarks(request, fidelities, cases)]
    return _told(request, clock, found + values + costs + latency, "", notes, fidelities, cases)


def _told(
    request: Request,
    clock: Clock,
    found: Sequence[Verdict],
    reason: str,
    notes: Sequence[str] = (),
    fidelities: Mapping[str, Fidelity] | None = None,
    cases: tuple[benchmark.Case, ...] = (),
) -> Checked:
    """Verdicts on all gates that are to be checked; those without one are skipped for the reason given."""
    by_name = {verdict.gate: verdict for verdict in found}
    wanted = [name for name in GATES if name not in ASKED or name in request.limits]
    ordered = tuple(by_name.get(name, Verdict(name, SKIPPED, reason)) for name in wanted)
    return Checked(ordered, tuple(notes), fidelities or {}, cases, clock.seconds)


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


def _paired(base: Model, new: Model, request: Request) -> _Pair:
    """Both models with inputs: real ones, or ``DRAWS`` random samples of each kind that the proof uses."""
    observation = observe(base, request.timed.shapes)
    sizes = {value.name: observation.shapes[value.name] for value in base.inputs}
    if request.data is None:
        if request.images != ImageFormat():
            raise OptionError("--mean, --std, --scale, --layout and --size go with --data; leave them out")
        return _Pair(base, new, observation, drawn(base, sizes, request.timed.seed), sizes)
    data = runnable(open_data(request.data, base, observation.shapes, request.images), base)
    if not request.timed.shapes:
        sizes = {name: value.shape for name, value in next(data.feeds(1)).items()}
    return _Pair(base, new, observation, {str(request.data): data}, sizes)


def drawn(model: Model, sizes: benchmark.Sizes, seed: int) -> dict[str, Data]:
    """Random samples, each a whole run, by the kind of their numbers; those of ``proof.inputs_for`` are the first."""
    found = {}
    for first, kind in enumerate(KINDS, seed):
        feeds = [random_feed(model, sizes, first + k, kind) for k in range(DRAWS)]
        found[f"random {kind} inputs"] = made_data(f"random {kind} inputs", model, sizes, feeds)
    return found


def _values(pair: _Pair, limits: Mapping[str, Limit]) -> tuple[list[Verdict], Mapping[str, Fidelity]]:
    """Verdicts on what NEW computes, and how far that is from what BASE computes."""
    base, new, replaced = pair.base, pair.new, pair.observation.replaced
    data = next(iter(pair.inputs.values()))
    feed = next(data.feeds(batch_size(data)))
    try:
        steady = _same_twice(base, feed, replaced)
    except RunFailed as error:
        raise ModelError(f"{base.path}: onnxruntime cannot run the model: {error}; give other inputs") from error
    try:
        again = _same_twice(new, feed, replaced)
        found = {
            name: compare(base, base.path, [new.path], each, batch_size(each), replaced)[0]
            for name, each in pair.inputs.items()
        }
    except RunFailed as error:
        return [Verdict(RUNS, FAILED, str(error))], {}
    judged = [Verdict(RUNS, PASSED), verdicts.finite(found), verdicts.repeatable(steady, again)]
    if DEVIATION in limits:
        judged.append(verdicts.deviation(limits[DEVIATION], found))
    if AGREEMENT in limits:
        agreed = verdicts.agreement(limits[AGREEMENT], found)
        if agreed is None:
            raise OptionError(
                f"--{AGREEMENT}: no output of {base.path} holds classes or whole numbers; use --{DEVIATION}"
            )
        judged.append(agreed)
    return judged, found


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


def _latency(pair: _Pair, request: Request, progress: Progress) -> tuple[list[Verdict], tuple[benchmark.Case, ...]]:
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


def _remarks(request: Request, fidelities: Mapping[str, Fidelity], cases: Sequence[benchmark.Case]) -> list[str]:
    """What is to be said of the measurements."""
    notes = [warning for case in cases for warning in case.warnings]
    for source, found in fidelities.items():
        reshaped = [one.output for one in found.outputs if one.reshaped]
        notes += [f"output '{name}' had another shape than BASE's on {source}" for name in reshaped]
        if found.metric is not None:
            notes.append(metric_text(fidelity(found)["metric"]))
        if found.unused:
            notes.append(found.unused)
    if AGREEMENT in request.limits and request.data is None:
        notes.append(f"{AGREEMENT} was judged on random inputs, which says little of real ones; give --data")
    provider = request.timed.setting.provider
    if provider != "cpu" and not {LATENCY_MS, SPEEDUP} & set(request.limits):
        notes.append(f"nothing was run on {provider}: no gate on latency was asked for")
    return list(dict.fromkeys(notes))

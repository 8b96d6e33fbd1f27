"""Fine-tune a model: load → round trip → train → store the weights → round trip → measure → write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx.commands.compress.judging import evidence_text
from leanonnx.commands.finetune.batching import BatchedNetwork, batched_network
from leanonnx.commands.finetune.holding import WeightChoice, choose_weights
from leanonnx.commands.finetune.loading import Loader, open_loader
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.objectives import Objective, Scene
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.parity import RoundTrip, round_trip
from leanonnx.commands.finetune.process_group import ProcessGroup, join_processes
from leanonnx.commands.finetune.signals import SIGNALS
from leanonnx.commands.finetune.strategies import Strategy, check_signal_options
from leanonnx.commands.finetune.training import TrainingOutcome, train
from leanonnx.commands.finetune.weights import constant_kinds, replace_constants
from leanonnx.errors import OptionError
from leanonnx.evaluation.deviation import Fidelity, compare_outputs
from leanonnx.evaluation.judgement import judge
from leanonnx.evaluation.plausibility import data_remarks
from leanonnx.formatting import count_text
from leanonnx.graph.formats import HALF_TYPES, REPLACED_TYPES, float_types
from leanonnx.graph.model import Model, load
from leanonnx.graph.storage import digest, write_model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.sessions import Feed
from leanonnx.spelling import option
from leanonnx.system.clock import Clock, Progress, ignore_progress
from leanonnx.system.memory import keep_freed_memory
from leanonnx.system.outputs import check_no_overwrites, check_writable, publish, temporary_folder_beside

ROUND_TRIP_INPUTS = 3
"""Number of inputs on which torch and onnxruntime are compared."""
LOWER_RATE_DIVISOR = 10
"""Divisor of the learning rate that is advised after a training without gain."""


@dataclass(frozen=True)
class FinetuneResult:
    """Result of ``finetune``.

    ``training`` holds the losses; ``weights``: what was trained and what was held; ``samples``: numbers of training and
    held-out samples; ``before`` and ``after``: held-out deviations of the input and of the written model from
    ``reference``; ``round_trips``: before and after training; ``batch_mode``: how the network takes a batch;
    ``headline``: the warning that the result is ruined.
    """

    headline: str | None
    strategy: Strategy
    training: TrainingOutcome
    weights: WeightChoice
    parameters: int
    samples: tuple[int, int]
    reference: Path
    before: Fidelity
    after: Fidelity
    round_trips: tuple[RoundTrip, RoundTrip]
    batch_mode: str
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Student:
    """The model to train, as a torch module, with the choice of weights, its tensor shapes, data and some inputs."""

    model: Model
    weights: WeightChoice
    network: TorchNetwork
    shapes: Shapes
    loader: Loader
    feeds: tuple[Feed, ...]


def run_finetune(
    source: Path,
    target: Path,
    teacher: Path | None,
    data: Path,
    options: FinetuneOptions,
    progress: Progress = ignore_progress,
    processes: ProcessGroup | None = None,
) -> FinetuneResult | None:
    """Train a model's weights and write it, with nothing else changed; None if another process writes it.

    Args:
        source: the model to train.
        target: path of the written model.
        teacher: the original, for ``school`` and for the deviations of the result.
        data: inputs, with labels for ``supervised``.
        options: strategy, device and training settings.
        progress: called on each stage and epoch.
        processes: a group joined already, in which every process writes its result; by default, only the first does.

    Raises:
        UserError: bad model, option, data or output path, or an operator that torch cannot run.
        ProofFailed: torch and onnxruntime disagree on the network; nothing is written.
    """
    clock = Clock(progress)
    _check_paths(source, target, teacher, data, options)
    group = processes or join_processes(options.device)
    try:
        with clock.stage("load"):
            model = load(source, options.libraries)
            base = load(teacher, options.libraries) if teacher else None
        check_no_overwrites(model.files, target, given=options.signal.files)
        student = _open_student(model, data, options, clock)
        trip = _round_trip(student, model, clock)
        objective, batched_student, notes = _objective(student, base, options, group, clock)
        with clock.stage("train", 0.0), keep_freed_memory():
            run, kinds = _run_fingerprint(student, base, options), _narrow_kinds(student)
            trained = train(
                batched_student, objective, student.loader, options.settings, group, run, kinds, clock.progress
            )
        if not trained.best_epoch:
            lower = option("lr", options.settings.rate / LOWER_RATE_DIVISOR)
            notes.append(
                "nothing better was found on the held-out samples: the output equals the input; try a lower rate, such "
                f"as {lower}"
            )
        student.network.place("cpu")
        if not group.is_leader and processes is None:
            return None
        return _publish_result(
            student, base, target, trained, trip, (options.strategy, batched_student.mode), notes, clock
        )
    finally:
        if processes is None:
            group.leave()


def _check_paths(source: Path, target: Path, teacher: Path | None, data: Path, options: FinetuneOptions) -> None:
    """Reject paths and options that would fail or overwrite files after the training."""
    for original in (source, data):
        check_writable(original, target)
    check_writable(source, options.settings.checkpoint)
    check_signal_options(options.strategy, options.signal)
    if teacher is not None:
        check_writable(teacher, target)
    elif options.strategy == "school":
        raise OptionError(
            f"{option('strategy', 'school')} learns from the original; give it with {option('teacher', 'BASE.onnx')}"
        )
    settings = options.settings
    if settings.checkpoint and target.resolve() == settings.checkpoint.resolve():
        raise OptionError(
            f"{target}: the checkpoint would overwrite the model; give another path with {option('checkpoint')}"
        )
    if settings.resume and not settings.checkpoint:
        raise OptionError(
            f"{option('resume', True)} goes on from a checkpoint; name it with {option('checkpoint', 'FILE')}"
        )
    if settings.checkpoint and settings.checkpoint.exists() and not settings.resume:
        raise OptionError(
            f"{settings.checkpoint}: exists already; add {option('resume', True)} to go on from it, or remove it"
        )


def _open_student(model: Model, path: Path, options: FinetuneOptions, clock: Clock) -> _Student:
    """Open the network in torch, with its data.

    Raises:
        OptionError: a pattern of names matches no weight.
        ModelError: an operator is not covered, or there is nothing to train.
        DataError: the data do not fit, or have no labels though the strategy needs them.
    """
    with clock.stage("observe"):
        shapes = observe(model, options.shapes).shapes
    weights = choose_weights(model, shapes, options.train, options.hold)
    network = TorchNetwork(model, weights.trained).eval()
    with clock.stage("data"):
        samples = SIGNALS[options.strategy].open_data(path, model, shapes, options)
        loader = open_loader(samples, options.settings.batch)
    inputs = [value.name for value in model.inputs]
    feeds = tuple({name: feed[name] for name in inputs} for feed, _ in loader.held_out[:ROUND_TRIP_INPUTS])
    return _Student(
        model=model,
        weights=weights,
        network=network,
        shapes=_shapes_of_run(model, feeds[0], shapes),
        loader=loader,
        feeds=feeds,
    )


def _shapes_of_run(model: Model, feed: Feed, shapes: Shapes) -> Shapes:
    """Shapes of the tensors when the model runs on real inputs."""
    fed = {name: value.shape for name, value in feed.items()}
    if all(shapes.get(name) == shape for name, shape in fed.items()):
        return shapes
    return observe(model, fed).shapes


def _round_trip(student: _Student, model: Model, clock: Clock) -> RoundTrip:
    with clock.stage("round trip"):
        return round_trip(model, model.proto, student.network, student.feeds)


def _objective(
    student: _Student, base: Model | None, options: FinetuneOptions, group: ProcessGroup, clock: Clock
) -> tuple[Objective, BatchedNetwork, list[str]]:
    """The objective, the network ready for batches on its device, and notes."""
    notes: list[str] = []
    with clock.stage("prepare"):
        scene = Scene(
            model=student.model,
            network=student.network,
            shapes=student.shapes,
            loader=student.loader,
            feeds=student.feeds,
            base=base,
            options=options,
            device=group.device,
            notes=notes,
        )
        objective = SIGNALS[options.strategy].objective(scene)
        batched_student = batched_network(student.network, student.feeds, objective.names)
        student.network.place(group.device)
    return objective, batched_student, notes


def _run_fingerprint(student: _Student, base: Model | None, options: FinetuneOptions) -> str:
    """Fingerprint of a run for its checkpoints: files, data, and all options but those that may change on resuming."""
    settings = replace(options.settings, minutes=None, checkpoint=None, resume=False)
    data = hashlib.sha256()
    for feed in student.feeds:
        for value in feed.values():
            data.update(np.ascontiguousarray(value).tobytes())
    rows: Mapping[str, Any] = {
        "model": student.model.sha256,
        "teacher": base.sha256 if base else None,
        "strategy": options.strategy,
        "weights": student.weights.trained,
        "signal": asdict(options.signal),
        "operators": [digest(path).hex() for path in options.signal.files],
        "augment": options.augment,
        "samples": [student.loader.count, len(student.loader.held_out)],
        "data": data.hexdigest(),
        "settings": asdict(settings),
    }
    return json.dumps(rows, sort_keys=True, default=str)


def _narrow_kinds(student: _Student) -> dict[str, Any]:
    """Types of the weights that are not stored as float32."""
    kinds = constant_kinds(student.model)
    convert: Callable[[int], Any] = onnx.helper.tensor_dtype_to_np_dtype
    return {name: convert(kinds[name]) for name in student.network.names if kinds[name] in REPLACED_TYPES}


def _publish_result(
    student: _Student,
    base: Model | None,
    target: Path,
    trained: TrainingOutcome,
    trip: RoundTrip,
    strategy_and_mode: tuple[Strategy, str],
    notes: list[str],
    clock: Clock,
) -> FinetuneResult:
    """Store the best weights, check and measure the file, and rename it into place."""
    model = student.model
    with temporary_folder_beside(target) as folder:
        draft = folder / target.name
        with clock.stage("write"):
            _write_weights(model, draft, trained.weights if trained.best_epoch else {})
            student.network.restore(trained.weights)
        with clock.stage("round trip"):
            written = load(draft, model.libraries)
            again = round_trip(written, written.proto, student.network, student.feeds)
        with clock.stage("measure"):
            reference = base or model
            held = student.loader.held_out_data.only(value.name for value in model.inputs)
            kinds = float_types(reference.proto) & HALF_TYPES
            before, after = compare_outputs(reference, reference.path, [model.path, draft], held, replaced=kinds)
        publish(draft, target)
    headline = _headline(base, after)
    notes = [*notes, *data_remarks(student.loader.data, before)]
    return FinetuneResult(
        headline=headline,
        strategy=strategy_and_mode[0],
        training=trained,
        weights=student.weights,
        parameters=sum(weight.size for weight in trained.weights.values()),
        samples=(student.loader.count, len(student.loader.held_out)),
        reference=reference.path,
        before=before,
        after=after,
        round_trips=(trip, again),
        batch_mode=strategy_and_mode[1],
        warnings=tuple(notes if headline is None else [headline, *notes]),
        seconds=clock.seconds,
    )


def _headline(base: Model | None, after: Fidelity) -> str | None:
    """The warning that the trained model is ruined; None if it is not, or if there is no original to judge it by."""
    judgement = None if base is None else judge(after)
    if base is None or judgement is None or not judgement.is_ruined:
        return None
    several = len(base.proto.graph.output) > 1
    evidence = evidence_text(judgement, count_text(judgement.samples, "held-out sample"), several)
    return f"the result is still ruined: {evidence}; train it longer, on more samples, or remove less before"


def _write_weights(model: Model, path: Path, weights: Mapping[str, Array]) -> None:
    """Write the trained file with new weights."""
    proto = onnx.load(model.path) if _has_functions(model) else model.proto
    write_model(replace_constants(proto, weights), path, external=bool(model.external_files))


def _has_functions(model: Model) -> bool:
    """Return True if the file has local functions, which are inlined in memory."""
    return bool(onnx.load(model.path, load_external_data=False).functions)

"""``finetune``: load → round trip → train → put the weights back → prove → write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx.commands.finetune.augment import Images, images_of
from leanonnx.commands.finetune.batching import Batched, batched, stacked
from leanonnx.commands.finetune.loading import Loader, grouped, open_loader
from leanonnx.commands.finetune.module import Network
from leanonnx.commands.finetune.objectives import Objective, noise2self_lesson, school_lesson, supervised_lesson
from leanonnx.commands.finetune.parity import RoundTrip, round_trip
from leanonnx.commands.finetune.process_group import ProcessGroup, join
from leanonnx.commands.finetune.strategies import Strategy
from leanonnx.commands.finetune.targets import common_targets
from leanonnx.commands.finetune.teachers import teacher_of
from leanonnx.commands.finetune.training import Settings, Trained, train
from leanonnx.commands.finetune.weights import original_kinds, put_back, trainable
from leanonnx.data.samples import Data, ImageFormat, open_data
from leanonnx.errors import DataError, ModelError, OptionError
from leanonnx.evaluation.deviation import Fidelity, compare
from leanonnx.graph.formats import HALVES, OTHERS, float_kinds
from leanonnx.graph.model import Model, load
from leanonnx.graph.storage import write_model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.sessions import Feed
from leanonnx.spelling import option
from leanonnx.system.clock import Clock, Progress, quiet
from leanonnx.system.outputs import check_apart, check_writable, publish, temporary_beside

TRIP_INPUTS = 3
"""Inputs on which torch and onnxruntime are compared."""


@dataclass(frozen=True)
class FinetuneOptions:
    """What ``finetune`` was asked to do."""

    strategy: Strategy = "school"
    shapes: Shapes = field(default_factory=dict)
    images: ImageFormat = field(default_factory=ImageFormat)
    augment: bool = True
    device: str = "cpu"
    libraries: tuple[Path, ...] = ()
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class FinetuneResult:
    """What came of it.

    ``trained`` holds the losses; ``samples``: trained on and held out; ``before`` and ``after``: held-out deviations of
    the input and of what was written from ``reference``; ``trips``: before and after training; ``way``: how the network
    takes a batch.
    """

    strategy: Strategy
    trained: Trained
    parameters: int
    samples: tuple[int, int]
    reference: Path
    before: Fidelity
    after: Fidelity
    trips: tuple[RoundTrip, RoundTrip]
    way: str
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Pupil:
    """The network to be trained, and what was found out about it."""

    model: Model
    network: Network
    shapes: Shapes
    loader: Loader
    feeds: tuple[Feed, ...]


def finetune(
    source: Path,
    target: Path,
    teacher: Path | None,
    data: Path,
    options: FinetuneOptions,
    progress: Progress = quiet,
    among: ProcessGroup | None = None,
) -> FinetuneResult | None:
    """Train a model's weights and write it with nothing else changed; None where another process writes it.

    Args:
        source: the model to train.
        target: where to write it.
        teacher: the original, for ``school`` and for the deviations in the result.
        data: inputs, with labels for ``supervised``.
        options: how.
        progress: told of stages and epochs.
        among: processes that have joined already and all want the file; by default, only the first writes it.

    Raises:
        UserError: bad model, option, data or output path, or an operator that torch cannot run.
        ProofFailed: torch and onnxruntime disagree about the network; nothing is written.
    """
    clock = Clock(progress)
    _check_paths(source, target, teacher, data, options)
    world = among or join(options.device)
    try:
        with clock.stage("load"):
            model = load(source, options.libraries)
            base = load(teacher, options.libraries) if teacher else None
        check_apart(model.files, target)
        pupil = _pupil(model, data, options, clock)
        trip = _round_trip(pupil, model, clock)
        lesson, student, notes = _lesson(pupil, base, options, world, clock)
        with clock.stage("train"):
            run, kinds = _identity(pupil, base, options), _halves(pupil)
            trained = train(student, lesson, pupil.loader, options.settings, world, run, kinds, progress)
        pupil.network.place("cpu")
        if not world.leads and among is None:
            return None
        return _written(pupil, base, target, trained, trip, (options.strategy, student.way), notes, clock)
    finally:
        if among is None:
            world.leave()


def _check_paths(source: Path, target: Path, teacher: Path | None, data: Path, options: FinetuneOptions) -> None:
    """Refuse what would fail or do harm after the training."""
    for kept in (source, data):
        check_writable(kept, target)
    check_writable(source, options.settings.checkpoint)
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


def _pupil(model: Model, path: Path, options: FinetuneOptions, clock: Clock) -> _Pupil:
    """The network in torch, with its data.

    Raises:
        ModelError: an operator is not covered, or there is nothing to train.
        DataError: the data do not fit, or have no labels where these are needed.
    """
    with clock.stage("observe"):
        shapes = observe(model, options.shapes).shapes
    names = _names(model)
    if not names:
        raise ModelError(
            f"{model.path}: holds no weights that could be trained (floats read by a layer as its weights); export the "
            "model with float weights"
        )
    network = Network(model, names).eval()
    with clock.stage("data"):
        found: Data = open_data(path, model, shapes, options.images)
        if options.strategy == "supervised" and found.labels is None:
            raise DataError(
                f"{path}: holds no labels; add an array 'labels' [samples, ...] to the .npz, or use "
                f"{option('strategy', 'school')}"
            )
        loader = open_loader(found, options.settings.batch)
    feeds = tuple(feed for feed, _ in loader.held[:TRIP_INPUTS])
    return _Pupil(model, network, _seen(model, feeds[0], shapes), loader, feeds)


def _seen(model: Model, feed: Feed, shapes: Shapes) -> Shapes:
    """Shapes of the tensors when the model is fed with real inputs."""
    found = {name: value.shape for name, value in feed.items()}
    if all(shapes.get(name) == shape for name, shape in found.items()):
        return shapes
    return observe(model, found).shapes


def _names(model: Model) -> tuple[str, ...]:
    """Constants to be trained; those within local functions are not."""
    names = trainable(model)
    if not _inlined(model):
        return names
    plain = replace(model, proto=onnx.load(model.path))
    return tuple(name for name in names if name in plain.holders)


def _round_trip(pupil: _Pupil, model: Model, clock: Clock) -> RoundTrip:
    with clock.stage("round trip"):
        return round_trip(model, model.proto, pupil.network, pupil.feeds)


def _lesson(
    pupil: _Pupil, base: Model | None, options: FinetuneOptions, world: ProcessGroup, clock: Clock
) -> tuple[Objective, Batched, list[str]]:
    """What the network is trained for, and the network ready to take batches on its device."""
    images = images_of({name: value.shape for name, value in pupil.feeds[0].items()})
    notes: list[str] = []
    with clock.stage("prepare"):
        if options.strategy == "school" and base is not None:
            lesson = _school(pupil, base, images, options, world, notes)
        elif options.strategy == "supervised":
            label = next(label for _, label in pupil.loader.held if label is not None)
            lesson = supervised_lesson(pupil.model, pupil.shapes, label, images if options.augment else None)
        else:
            lesson = noise2self_lesson(pupil.model, pupil.shapes, images, options.augment)
        student = batched(pupil.network, pupil.feeds, lesson.names)
        pupil.network.place(world.device)
    return lesson, student, notes


def _school(
    pupil: _Pupil, base: Model, images: Images | None, options: FinetuneOptions, world: ProcessGroup, notes: list[str]
) -> Objective:
    """Learning from the original."""
    ours, theirs = (
        {v.name: v.type.tensor_type.elem_type for v in (*m.inputs, *m.proto.graph.output)} for m in (pupil.model, base)
    )
    if ours != theirs:
        raise OptionError(
            f"{option('teacher', str(base.path))}: its inputs and outputs, or their types, are not those of "
            f"{pupil.model.path}; give the original that was compressed"
        )
    seen = observe(base, {name: value.shape for name, value in pupil.feeds[0].items()}).shapes
    targets = common_targets(base, pupil.model, pupil.shapes, seen)
    if not any(not target.inner for target in targets):
        raise OptionError(
            f"{option('teacher', str(base.path))}: no float output has the shape that it has in {pupil.model.path}; "
            "give the original that was compressed"
        )
    names = tuple(target.name for target in targets)
    teacher, note = teacher_of(base, pupil.feeds, names, world.device)
    notes += [note] if note else []
    held = grouped(pupil.loader.held, options.settings.batch)
    known = [stacked([feed for feed, _ in group], world.device) for group in held]
    return school_lesson(targets, teacher, known, images if options.augment else None)


def _identity(pupil: _Pupil, base: Model | None, options: FinetuneOptions) -> str:
    """What a checkpoint belongs to: files, data and all options but those that may change on the way."""
    settings = replace(options.settings, minutes=None, checkpoint=None, resume=False)
    digest = hashlib.sha256()
    for feed in pupil.feeds:
        for value in feed.values():
            digest.update(np.ascontiguousarray(value).tobytes())
    rows: Mapping[str, Any] = {
        "model": pupil.model.sha256,
        "teacher": base.sha256 if base else None,
        "strategy": options.strategy,
        "augment": options.augment,
        "samples": [pupil.loader.count, len(pupil.loader.held)],
        "data": digest.hexdigest(),
        "settings": asdict(settings),
    }
    return json.dumps(rows, sort_keys=True, default=str)


def _halves(pupil: _Pupil) -> dict[str, Any]:
    """Types of the weights that the file holds in other than float32."""
    kinds = original_kinds(pupil.model)
    convert: Callable[[int], Any] = onnx.helper.tensor_dtype_to_np_dtype
    return {name: convert(kinds[name]) for name in pupil.network.names if kinds[name] in OTHERS}


def _written(
    pupil: _Pupil,
    base: Model | None,
    target: Path,
    trained: Trained,
    trip: RoundTrip,
    lesson: tuple[Strategy, str],
    notes: list[str],
    clock: Clock,
) -> FinetuneResult:
    """Put the best weights back, prove the file and rename it into place."""
    model = pupil.model
    with temporary_beside(target) as folder:
        draft = folder / target.name
        with clock.stage("write"):
            _write(model, draft, trained.weights if trained.best_epoch else {})
            pupil.network.restore(trained.weights)
        with clock.stage("round trip"):
            written = load(draft, model.libraries)
            again = round_trip(written, written.proto, pupil.network, pupil.feeds)
        with clock.stage("measure"):
            reference = base or model
            held, kinds = pupil.loader.held_data, float_kinds(reference.proto) & HALVES
            before, after = compare(reference, reference.path, [model.path, draft], held, replaced=kinds)
        publish(draft, target)
    if not trained.best_epoch:
        notes = [*notes, "nothing better was found on the held-out samples: the output equals the input"]
    return FinetuneResult(
        strategy=lesson[0],
        trained=trained,
        parameters=sum(weight.size for weight in trained.weights.values()),
        samples=(pupil.loader.count, len(pupil.loader.held)),
        reference=reference.path,
        before=before,
        after=after,
        trips=(trip, again),
        way=lesson[1],
        warnings=tuple(notes),
        seconds=clock.seconds,
    )


def _write(model: Model, path: Path, weights: Mapping[str, Array]) -> None:
    """The file that was trained, with other weights."""
    proto = onnx.load(model.path) if _inlined(model) else model.proto
    write_model(put_back(proto, weights), path, external=bool(model.external_files))


def _inlined(model: Model) -> bool:
    """Whether the file has local functions, which are inlined in memory."""
    return bool(onnx.load(model.path, load_external_data=False).functions)

"""The main job, stage by stage: load → observe → analyse → select → operate → prove → write."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from leanonnx.analysis import ChannelDag, analyse
from leanonnx.cost import Cost, cost_model
from leanonnx.criteria import Chains, Method
from leanonnx.errors import ModelError, NotFaster, OptionError, ProofFailed
from leanonnx.formats import Kinds, float_kinds
from leanonnx.labels import Mask
from leanonnx.latency import latency_model
from leanonnx.model import Model, check, load
from leanonnx.named import ignored_pin, named_nodes, named_pin
from leanonnx.outputs import check_apart, check_writable, publish, temporary_beside
from leanonnx.patch import masking_patch, plan_patch
from leanonnx.plan import Plan, make_plan, read_plan, replay
from leanonnx.proof import Proof, inputs_for, prove
from leanonnx.rules.table import DEFAULT, Rules
from leanonnx.runtime.fresh import measured
from leanonnx.runtime.machine import detected
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.timing import Comparison
from leanonnx.search import SECONDS, TRIES, Trial, within_budget, within_latency
from leanonnx.selection import LATENCY, Budget, Request, Selection, Selector
from leanonnx.storage import write_model
from leanonnx.surgery import apply
from leanonnx.targets import Target, known_targets, read_targets
from leanonnx.version import __version__
from leanonnx.weigh import check_finite
from leanonnx.widths import Alignment


class Progress(Protocol):
    """A listener that is told which stage has begun, and how much of it is done (0 to 1) where that is known."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """Take note of it."""


@dataclass(frozen=True)
class Options:
    """What ``compress`` was asked to do.

    ``align``: widths are multiples of this (None: what the target wants); ``target``: a table of ``targets.toml``
    ("auto": the one of this machine and provider), those in the file ``targets`` coming first.
    """

    budget: Budget = field(default_factory=lambda: Budget("kernels", 1.0))
    method: Method = "auto"
    chains: Chains = "cover"
    shapes: Shapes = field(default_factory=dict)
    pin: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    plan: Path | None = None
    libraries: tuple[Path, ...] = ()
    best_effort: bool = False
    align: int | None = None
    target: str = "auto"
    targets: Path | None = None
    setting: Setting = field(default_factory=Setting)
    measure: bool = True
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """The options that shaped the plan, for the plan file."""
        return {
            self.budget.unit: self.budget.fraction,
            "method": self.method,
            "chains": self.chains,
            "shapes": {name: list(shape) for name, shape in sorted(self.shapes.items())},
            "pin": sorted(self.pin),
            "ignore": sorted(self.ignore),
            "best_effort": self.best_effort,
            "align": "auto" if self.align is None else self.align,
            "target": self.target,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Result:
    """What came of a compression; ``seconds`` by stage, ``bytes`` before and after."""

    dag: ChannelDag
    alive: Mask
    plan: Plan
    before: Cost
    after: Cost
    bytes: tuple[int, int]
    proof: Proof
    latency: Comparison | None
    setting: Setting
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]


class Clock:
    """Seconds by stage, those of a stage within another counted for the inner one; tells a listener what has begun."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self.since = time.perf_counter()

    @contextmanager
    def stage(self, name: str, done: float | None = None) -> Iterator[None]:
        """Time one stage, of which so much is done (0 to 1)."""
        self._charge()
        self.running.append(name)
        self.progress(name, done)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self.running:
            name = self.running[-1]
            self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.since, 3)
        self.since = now


def quiet(stage: str, done: float | None = None) -> None:
    """A listener that ignores progress."""


def inspect(
    path: Path, shapes: Shapes | None = None, rules: Rules = DEFAULT, libraries: tuple[Path, ...] = ()
) -> ChannelDag:
    """Load a model and build its channel DAG."""
    model = load(path, checked_libraries(libraries))
    return analyse(model, observe(model, checked_shapes(model, shapes or {})), rules)


def compress(
    source: Path,
    target: Path,
    options: Options,
    plan_out: Path | None = None,
    rules: Rules = DEFAULT,
    progress: Progress = quiet,
) -> Result:
    """Compress a model file, prove the result and write it, with its plan where ``plan_out`` is given.

    Raises:
        UserError: bad model, option, plan or output path.
        BudgetUnreachable: the budget cannot be reached (unless ``best_effort``).
        ProofFailed: the result is not equal to the masked original; nothing is written.
    """
    clock = Clock(progress)
    for path in (target, plan_out):
        check_writable(source, path)
    with clock.stage("load"):
        model = load(source, checked_libraries(options.libraries))
    check_apart(model, target, plan_out)
    with clock.stage("observe"):
        observation = observe(model, checked_shapes(model, options.shapes))
    with clock.stage("analyse"):
        dag = analyse(model, observation, rules)
        check_finite(dag)
    with temporary_beside(target) as folder:
        workshop = _Workshop(dag, options, folder / target.name, clock)
        trial = _found(dag, options, workshop)
        selection = trial.selection
        draft = workshop.write(selection.alive)
        with clock.stage("prove"):
            proof = _proven(dag, selection.alive, draft, options.seed)
        plan = make_plan(dag, selection.alive, options.record(), __version__)
        size = publish(draft, target, plan, plan_out)
    return Result(
        dag,
        selection.alive,
        plan,
        selection.before,
        selection.after,
        (model.size, size),
        proof,
        trial.comparison,
        options.setting.resolved,
        _warnings(trial, options, workshop.failure),
        clock.seconds,
    )


class _Workshop:
    """Writes and measures drafts of the result."""

    def __init__(self, dag: ChannelDag, options: Options, draft: Path, clock: Clock) -> None:
        self.dag, self.options, self.draft, self.clock = dag, options, draft, clock
        self.written: Mask | None = None
        self.failure = ""
        self.attempts = 0

    def write(self, alive: Mask) -> Path:
        """Write the network of a keep set; a byte-identical copy where nothing is removed."""
        if self.written is None or not np.array_equal(self.written, alive):
            model = self.dag.model
            with self.clock.stage("operate"):
                if alive.all() and not model.external_files:
                    shutil.copyfile(model.path, self.draft)
                else:
                    write_model(_operated(self.dag, alive), self.draft, external=bool(model.external_files))
            self.written = alive
        return self.draft

    def attempt(self, selection: Selection, seconds: float) -> Trial:
        """Measure a keep set against the original, unless that was declined or cannot be done."""
        if not self.options.measure or self.failure or selection.alive.all():
            return Trial(selection, None)
        draft = self.write(selection.alive)
        self.attempts += 1
        searching = self.options.budget.unit == LATENCY
        with self.clock.stage("measure", self.attempts / TRIES if searching else None):
            feed = self.dag.observation.feeds
            try:
                found = measured(self.dag.model.path, draft, feed, self.options.setting, seconds, self.options.seed)
            except RunFailed as error:
                self.failure = str(error)
                return Trial(selection, None)
        return Trial(selection, found)


def _found(dag: ChannelDag, options: Options, workshop: _Workshop) -> Trial:
    """The keep set to be written, measured.

    Raises:
        BudgetUnreachable: no keep set fits the budget.
        NotFaster: none is faster than the original.
    """
    with workshop.clock.stage("select"):
        if options.plan is not None:
            trial = workshop.attempt(_replayed(dag, options, options.plan), SECONDS)
        else:
            target = resolved_target(options, float_kinds(dag.model.proto))
            predicted = latency_model(dag, target)
            request = _request(dag, options, target)
            selector = Selector(dag, request, predicted if options.budget.unit == LATENCY else None)
            if options.budget.unit == LATENCY:
                trial = within_latency(selector, workshop.attempt)
            else:
                trial = within_budget(selector, predicted, workshop.attempt)
    if not trial.faster and not options.best_effort:
        raise NotFaster(
            f"{_not_faster(trial)}; nothing written; ask for less of the model, or add --best-effort to write it anyway"
        )
    return trial


def checked_libraries(libraries: tuple[Path, ...]) -> tuple[Path, ...]:
    """Libraries of custom operators given by the user; they must be files."""
    for library in libraries:
        if not library.is_file():
            raise OptionError(f"--library {library}: no such file; give the path of the library")
    return tuple(library.resolve() for library in libraries)


def checked_shapes(model: Model, shapes: Shapes) -> Shapes:
    """Input shapes given by the user, held against the model's inputs."""
    inputs = {value.name: value for value in model.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise OptionError(f"--shape {name}: no such graph input; the inputs are {', '.join(inputs)}")
        dims = inputs[name].type.tensor_type.shape.dim
        declared = [d.dim_value if d.HasField("dim_value") else -1 for d in dims]
        if len(declared) != len(shape) or any(d not in (-1, s) for d, s in zip(declared, shape, strict=True)):
            text = ",".join("?" if d < 0 else str(d) for d in declared)
            raise OptionError(f"--shape {name}={','.join(map(str, shape))}: the model declares {text}")
    return shapes


def _replayed(dag: ChannelDag, options: Options, path: Path) -> Selection:
    if options.pin or options.ignore:
        raise OptionError("--pin and --ignore cannot be joined to --plan, which says what is kept")
    alive = replay(dag, read_plan(path), path)
    cost = cost_model(dag)
    return Selection(alive, cost(np.ones(dag.count, bool)), cost(alive), reached=True)


def resolved_target(options: Options, kinds: Kinds) -> Target:
    """The target that was named, or the one of this machine.

    Raises:
        OptionError: there is no such target.
    """
    tables = known_targets() | (read_targets(options.targets) if options.targets else {})
    name = detected(options.setting, kinds) if options.target == "auto" else options.target
    if name not in tables:
        raise OptionError(f"--target {name}: no such target; there are auto, {', '.join(tables)}")
    return tables[name]


def _request(dag: ChannelDag, options: Options, target: Target) -> Request:
    ignored = frozenset(node for name in options.ignore for node in named_nodes(dag.model, name))
    pins = [named_pin(dag, name) for name in options.pin] + [ignored_pin(dag, node) for node in sorted(ignored)]
    return Request(
        options.budget,
        options.method,
        options.chains,
        tuple(pins),
        ignored,
        options.seed,
        options.best_effort,
        Alignment(target.block, target.multiple) if options.align is None else Alignment(options.align),
    )


def _operated(dag: ChannelDag, alive: Mask) -> onnx.ModelProto:
    shrunk = {name for name, labels in dag.labels.items() if not alive[labels].all()}
    return apply(dag.model, plan_patch(dag, alive), shrunk)


def _proven(dag: ChannelDag, alive: Mask, draft: Path, seed: int) -> Proof:
    """Check and prove the file as written.

    Raises:
        ProofFailed: the checker, onnxruntime or the comparison refuses it.
    """
    feeds = inputs_for(dag.model, dag.shapes, seed)
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        reference = Path(folder) / "reference.onnx"
        write_model(apply(dag.model, masking_patch(dag, alive)), reference, external=True)
        try:
            check(draft)
            proof = prove(dag.model, reference, draft, feeds, dag.observation.replaced)
        except (ModelError, RunFailed) as error:
            raise ProofFailed(f"the compressed model is not valid ({error}); nothing written") from error
    if proof.silent:
        raise ProofFailed(
            f"the model puts out nothing that can be compared on the inputs tried (outputs {', '.join(proof.silent)}: "
            "not finite, or chaotic); nothing written; check the weights of the model"
        )
    if not proof.passed:
        raise ProofFailed(
            f"the compressed model differs from the masked original (relative error {proof.max_relative_error:.2g}, "
            f"bound {proof.bound:.2g}); nothing written; a rule is wrong: "
            "check those given with --rules, or report the model's operators"
        )
    return proof


def _not_faster(trial: Trial) -> str:
    """A measurement in words: how the result compares with the original."""
    found = trial.comparison
    if found is None:
        return ""
    low, high = found.interval
    words = "slower than the original" if high < 1 else "no faster than the original, beyond noise"
    return f"the result is {words}: {found.speedup:.3f} times its speed (95 % interval {low:.3f} to {high:.3f})"


def _warnings(trial: Trial, options: Options, failure: str) -> tuple[str, ...]:
    found = []
    budget, selection = options.budget, trial.selection
    if not trial.faster:
        found.append(_not_faster(trial))
    if failure:
        found.append(f"latency could not be measured: {failure}")
    if not selection.reached:
        lowest = trial.fraction
        if budget.unit != LATENCY:
            lowest = getattr(selection.after, budget.unit) / max(getattr(selection.before, budget.unit), 1)
        found.append(
            f"over budget: {lowest:.4f} of the {budget.unit} is the lowest reachable, {budget.fraction:g} was asked for"
            + "".join(f"; {limit}" for limit in selection.limits)
        )
    if selection.alive.all() and budget.fraction < 1:
        found.append("nothing could be removed: the output equals the input")
    return tuple(found)

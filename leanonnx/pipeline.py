"""The main job, stage by stage: load → observe → analyse → select → operate → prove → write."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from leanonnx.analysis import ChannelDag, analyse
from leanonnx.cost import Cost, cost_model
from leanonnx.criteria import Chains, Method
from leanonnx.errors import ModelError, OptionError, OutputError, ProofFailed
from leanonnx.labels import Mask
from leanonnx.model import Model, check, load
from leanonnx.patch import masking_patch, plan_patch
from leanonnx.plan import Plan, make_plan, read_plan, replay
from leanonnx.proof import Proof, inputs_for, prove
from leanonnx.rules.call import Pin
from leanonnx.rules.table import DEFAULT, Rules
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection import Budget, Request, Selection, select
from leanonnx.storage import write_model
from leanonnx.surgery import apply
from leanonnx.version import __version__
from leanonnx.weigh import check_finite
from leanonnx.widths import NATURAL, Alignment

Progress = Callable[[str], None]
LONGEST_NAME = 240
"""Bytes of a file name that leave room for the suffix of a data file."""


@dataclass(frozen=True)
class Options:
    """What ``compress`` was asked to do."""

    budget: Budget = field(default_factory=lambda: Budget("kernels", 1.0))
    method: Method = "auto"
    chains: Chains = "cover"
    shapes: Shapes = field(default_factory=dict)
    pin: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    plan: Path | None = None
    libraries: tuple[Path, ...] = ()
    best_effort: bool = False
    alignment: Alignment = NATURAL
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
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]


class Clock:
    """Seconds by stage; tells a listener which stage has begun."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def quiet(_: str) -> None:
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
    with clock.stage("select"):
        selection = _selected(dag, options)
    plan = make_plan(dag, selection.alive, options.record(), __version__)
    with temporary_beside(target) as folder, clock.stage("operate"):
        draft = folder / target.name
        unchanged = bool(selection.alive.all())
        if unchanged and not model.external_files:
            shutil.copyfile(model.path, draft)
        else:
            write_model(_operated(dag, selection.alive), draft, external=bool(model.external_files))
        with clock.stage("prove"):
            proof = _proven(dag, selection.alive, draft, options.seed)
        warnings = _warnings(selection, options, unchanged)
        size = _publish(draft, target, plan, plan_out)
    clock.seconds["operate"] = round(clock.seconds["operate"] - clock.seconds["prove"], 3)
    return Result(
        dag,
        selection.alive,
        plan,
        selection.before,
        selection.after,
        (model.size, size),
        proof,
        warnings,
        clock.seconds,
    )


def checked_libraries(libraries: tuple[Path, ...]) -> tuple[Path, ...]:
    """Libraries of custom operators given by the user; they must be files."""
    for library in libraries:
        if not library.is_file():
            raise OptionError(f"--library {library}: no such file; give the path of the library")
    return tuple(library.resolve() for library in libraries)


def check_writable(source: Path, path: Path | None) -> None:
    """Refuse a path that cannot be written or would harm the input."""
    if path is None:
        return
    if os.path.realpath(path) == os.path.realpath(source):
        raise OptionError(f"{path}: the output is the input file; give another output path")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path}: is no regular file; give the path of the file to write")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path}: the folder '{path.parent}' does not exist; make it first")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"{path.name[:40]}…: the file name is too long; give a shorter one")


def check_apart(model: Model, target: Path, plan_out: Path | None) -> None:
    """Refuse outputs that would overwrite each other, the input or the data it keeps beside it."""
    outputs = [target, *([plan_out] if plan_out else []), *([_data_file(target)] if model.external_files else [])]
    places = [os.path.realpath(path) for path in outputs]
    taken = {os.path.realpath(path): path for path in (model.path, *model.external_files)}
    for path, place in zip(outputs, places, strict=True):
        if place in taken or any(os.path.exists(path) and taken[t].samefile(path) for t in taken):
            raise OptionError(f"{path}: writing it would overwrite the input or its data; give another output path")
    if len(set(places)) < len(places):
        raise OptionError(f"{plan_out}: the plan would overwrite the model; give another path with --plan-out")


def _data_file(target: Path) -> Path:
    """Where external data of a written model go."""
    return target.with_name(f"{target.name}.data")


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


def _selected(dag: ChannelDag, options: Options) -> Selection:
    if options.plan is not None:
        if options.pin or options.ignore:
            raise OptionError("--pin and --ignore cannot be joined to --plan, which says what is kept")
        alive = replay(dag, read_plan(options.plan), options.plan)
        cost = cost_model(dag)
        return Selection(alive, cost(np.ones(dag.count, bool)), cost(alive), reached=True)
    request = Request(
        options.budget,
        options.method,
        options.chains,
        tuple(_named_pin(dag, name) for name in options.pin),
        frozenset(node for name in options.ignore for node in _named_nodes(dag.model, name)),
        options.seed,
        options.best_effort,
        options.alignment,
    )
    pins = tuple(_ignored_pin(dag, node) for node in sorted(request.ignored))
    return select(dag, replace(request, pinned=request.pinned + pins))


def _named_pin(dag: ChannelDag, name: str) -> Pin:
    """``--pin NAME``: a tensor, or a node whose outputs are meant."""
    if name in dag.labels:
        return Pin(np.unique(dag.labels[name]), name, f"--pin {name}")
    nodes = [n for n in dag.model.proto.graph.node if name and n.name == name]
    labels = [np.unique(dag.labels[o]) for node in nodes for o in node.output if o in dag.labels]
    if not labels:
        raise OptionError(f"--pin {name}: no tensor and no node of that name carries channels; see `leanonnx inspect`")
    return Pin(np.unique(np.concatenate(labels)), name, f"--pin {name}")


def _named_nodes(model: Model, name: str) -> list[int]:
    """``--ignore LAYER``: a node by its name or by the name of its output."""
    found = [k for k, n in enumerate(model.proto.graph.node) if name and (n.name == name or name in n.output)]
    if not found:
        raise OptionError(f"--ignore {name}: no node has this name or puts out this tensor; see `leanonnx inspect`")
    return found


def _ignored_pin(dag: ChannelDag, node: int) -> Pin:
    outputs = dag.model.proto.graph.node[node].output
    labels = [np.unique(dag.labels[o]) for o in outputs if o in dag.labels]
    return Pin(np.unique(np.concatenate(labels)) if labels else np.zeros(0, np.int64), outputs[0], "--ignore")


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


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's file system, always removed.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".leanonnx-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent}: cannot be written to: {error.strerror}; choose another folder") from error
    try:
        yield folder
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}; free some space") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(draft: Path, target: Path, plan: Plan, plan_out: Path | None) -> int:
    """Rename the proven files into place, the model last; returns their size in bytes."""
    staged = [(_data_file(draft), _data_file(target))] if _data_file(draft).exists() else []
    size = draft.stat().st_size + sum(file.stat().st_size for file, _ in staged)
    with ExitStack() as stack:
        if plan_out is not None:
            folder = stack.enter_context(temporary_beside(plan_out))
            (folder / plan_out.name).write_text(plan.text())
            staged.append((folder / plan_out.name, plan_out))
        if staged:
            target.unlink(missing_ok=True)
        for file, place in [*staged, (draft, target)]:
            file.replace(place)
    return size


def _warnings(selection: Selection, options: Options, unchanged: bool) -> tuple[str, ...]:
    found = []
    budget = options.budget
    if not selection.reached:
        lowest = getattr(selection.after, budget.unit) / max(getattr(selection.before, budget.unit), 1)
        found.append(
            f"over budget: {lowest:.4f} of the {budget.unit} is the lowest reachable, {budget.fraction:g} was asked for"
            + "".join(f"; {limit}" for limit in selection.limits)
        )
    if unchanged and budget.fraction < 1:
        found.append("nothing could be removed: the output equals the input")
    return tuple(found)

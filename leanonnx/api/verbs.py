"""leanonnx in Python: what the verbs of the command line do, as functions.

They take paths or models in memory, print nothing, and raise ``UserError`` (what was asked cannot be carried out) or
``Refusal`` (the answer is no).  Keywords are called like the options of the command line and are checked in the same
places; messages name them as it does, ``--best-effort`` for ``best_effort``.
"""

from __future__ import annotations

import inspect
import reprlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from numpy.typing import ArrayLike

from leanonnx.api.results import Analysis, Compressed, Timings
from leanonnx.api.sources import ModelSource, as_file, several, title
from leanonnx.commands.bench import benchmark
from leanonnx.commands.bench.report import bench_report
from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import CompressOptions, Recover, alignment, asked_budget
from leanonnx.commands.compress.workshop import compared
from leanonnx.data.files import IN_MEMORY
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import PLAIN, Samples
from leanonnx.errors import ModelError, OptionError
from leanonnx.graph.model import Model, load
from leanonnx.page.page import PageContext, render
from leanonnx.proof.proof import Proof
from leanonnx.ranking.criteria import Chains, Method
from leanonnx.reporting.inspection import network_report
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.rules.user import joined_rules, read_rules
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.timing import SECONDS
from leanonnx.selection.selector import LATENCY
from leanonnx.surgery.plan import Plan, load_plan, replay
from leanonnx.system.clock import Progress, quiet
from leanonnx.system.outputs import StrPath

RuleSource = StrPath | Rules
"""Rules of one's own: a Python file that holds RULES and is run, or such a table."""
Calibration = StrPath | Mapping[str, ArrayLike] | ArrayLike
"""An .npz file, a folder of them or of images; arrays [samples, ...] by graph input; one array for the only input."""


def compress(
    model: ModelSource,
    out: StrPath | None = None,
    *,
    keep: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    plan: Plan | StrPath | None = None,
    exact: bool = False,
    method: Method = "auto",
    chains: Chains = "cover",
    shape: Shapes | None = None,
    pin: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    plan_out: StrPath | None = None,
    plan_weights: StrPath | None = None,
    report: StrPath | None = None,
    calib: Calibration | None = None,
    images: ImageFormat = PLAIN,
    recover: Recover | None = None,
    align: Literal["auto"] | int = "auto",
    target: str = "auto",
    targets: StrPath | None = None,
    provider: Provider = "cpu",
    threads: int = 0,
    rules: RuleSource | None = None,
    library: StrPath | Sequence[StrPath] = (),
    freeze: bool = False,
    best_effort: bool = False,
    measure: bool = True,
    seed: int = 0,
    progress: Progress = quiet,
) -> Compressed:
    """Remove channels until the model fits the budget, prove the result and give it back.

    >>> small = compress("models/cs_unet.onnx", keep=0.25, measure=False)
    >>> small.proof.passed, small.kernels.fraction <= 0.25
    (True, True)

    Args:
        model: its path, or the model itself.
        out, plan_out, plan_weights, report: where the result, its plan, changed weights and a page go; None: nowhere.
        keep, macs, params, latency, plan, exact: how far to go, one of them: a fraction; a plan; what is of no use.
        method, chains, seed: how channels are ranked; seed of that, if random, and of the proof's inputs.
        shape, pin, ignore: sizes of free graph inputs by name; channels that all stay; layers that are not counted.
        calib, images, recover: real inputs; how images become inputs; whether weights change (None: with ``calib``).
        align, target, targets: widths; the hardware they are for; the file that ``calibrate-device`` stored.
        provider, threads, measure: where the result is to run, and whether to measure it there.
        rules, library: rules of your own, and onnxruntime's libraries of custom operators.
        freeze, best_effort: make weights that are graph inputs constants; give the nearest where the answer were no.
        progress: told of each stage, and how much of it is done (0 to 1) where that is known.

    Raises:
        UserError, Refusal: exit codes 2 and 1 of the command line; nothing is written.
    """
    options = CompressOptions(
        budget=asked_budget({"keep": keep, "macs": macs, "params": params, LATENCY: latency}, plan, exact),
        method=method,
        chains=chains,
        shapes=shape or {},
        pin=several(pin, str),
        ignore=several(ignore, str),
        plan=_plan(plan),
        libraries=several(library, Path),
        best_effort=best_effort,
        align=alignment(align),
        target=target,
        targets=_path(targets),
        setting=Setting(provider, threads),
        measure=measure,
        seed=seed,
        exact=exact,
        freeze=freeze,
        calib=_samples(calib),
        images=images,
        recover=recover,
    )
    with as_file(model) as source, _place(out) as place:
        return Compressed.of(pipeline.compress(source, place, options, **_extras(locals())), place)


def analyse(
    model: ModelSource,
    *,
    shape: Shapes | None = None,
    rules: RuleSource | None = None,
    library: StrPath | Sequence[StrPath] = (),
) -> Analysis:
    """Find out which channels a model has, which of them are tied or pinned, and what it costs.

    >>> found = analyse("models/cs_unet.onnx")
    >>> found.kernels, len(found.layers), [pin.tensor for pin in found.pins]
    (59488, 18, ['logits', 'input'])
    >>> found.why("logits", 0).pins[0].reason
    "graph output 'logits'"

    Args:
        model: its path, or the model itself.
        shape: sizes of graph inputs with free axes, by name.
        rules: rules of your own for further operators.
        library: onnxruntime's libraries of custom operators.

    Raises:
        UserError: bad model, shape, rules or library.
    """
    with as_file(model) as source:
        dag = pipeline.inspect(source, shape or {}, _rules(rules), several(library, Path))
        return Analysis(dag, network_report(dag))


def prove(
    base: ModelSource,
    new: ModelSource,
    plan: Plan | StrPath | None = None,
    *,
    shape: Shapes | None = None,
    rules: RuleSource | None = None,
    library: StrPath | Sequence[StrPath] = (),
    seed: int = 0,
) -> Proof:
    """Compare a compressed model with its original on random inputs, in onnxruntime.

    With a plan, every output must equal that of the original in which the channels that the plan drops are zeroed
    wherever they are read: then the change is the removal of these channels and nothing else.  Without a plan, or with
    one of ``exact``, it must equal the original's as it is.  Weights that were changed afterwards (``recover``,
    ``finetune``) differ from either; how far is what ``deviation`` and ``leanonnx finetune`` tell.

    >>> small = compress("models/cs_unet.onnx", keep=0.5, measure=False)
    >>> prove("models/cs_unet.onnx", small.model, small.plan).passed
    True
    >>> prove("models/cs_unet.onnx", small.model).passed
    False

    Args:
        base: the original.
        new: what was made of it.
        plan: which channels were removed; None: none that matter.
        shape, rules, library: as in ``compress``.
        seed: of the inputs.

    Raises:
        UserError: bad model or option, a plan of another model, or other inputs and outputs than the original's.
    """
    made = _plan(plan)
    with as_file(base) as source, as_file(new) as candidate:
        dag = pipeline.inspect(source, shape or {}, _rules(rules), several(library, Path), bool(made and made.freezes))
        alive = None if made is None or made.exact else replay(dag, made)
        rival = load(candidate, dag.model.libraries)
        benchmark.check_same_inputs(dag.model, rival)
        _check_same_outputs(dag.model, rival)
        try:
            return compared(dag, alive, candidate, seed)
        except RunFailed as error:
            raise ModelError(
                f"{title(new)}: cannot be run on the inputs of the original: {error}; give what was made of that model"
            ) from error


def bench(
    a: ModelSource,
    b: ModelSource | None = None,
    *,
    provider: Provider = "cpu",
    threads: int | Sequence[int] = 0,
    batch: int | Sequence[int] = (),
    shape: Shapes | None = None,
    seconds: float = SECONDS,
    library: StrPath | Sequence[StrPath] = (),
    cuda_graph: bool = False,
    tf32: bool = True,
    seed: int = 0,
    progress: Progress = quiet,
) -> Timings:
    """Time a model in onnxruntime, or two against each other in turns, each measurement in a fresh process.

    >>> found = bench("models/cs_unet.onnx", threads=1, seconds=0.2)
    >>> found.cases[0].outcome.median > 0
    True

    Args:
        a: the model to time.
        b: a model to time against it.
        provider: where they run.
        threads: within an operator, one number or several; 0 is all physical cores.
        batch: sizes of the free first axis, one or several.
        shape: sizes of graph inputs with free axes, by name.
        seconds: how long each measurement may take.
        library: onnxruntime's libraries of custom operators.
        cuda_graph, tf32: how the GPU is used.
        seed: of the inputs and of the interval.
        progress: told of each stage.

    Raises:
        UserError: bad model or option, a provider that is not there, models that take different inputs.
    """
    request = benchmark.BenchRequest(
        shapes=shape or {},
        batches=several(batch, int),
        threads=several(threads, int),
        setting=Setting(provider, cuda_graph=cuda_graph, tf32=tf32),
        libraries=several(library, Path),
        seconds=seconds,
        seed=seed,
    )
    with as_file(a) as source, ExitStack() as stack:
        other = None if b is None else stack.enter_context(as_file(b))
        cases = benchmark.bench(source, other, request, progress)
    return Timings(cases, bench_report(title(a), None if b is None else title(b), request, cases))


def _check_same_outputs(model: Model, rival: Model) -> None:
    mine, theirs = ([(v.name, v.type.tensor_type.elem_type) for v in m.proto.graph.output] for m in (model, rival))
    if mine != theirs:
        raise OptionError(f"{rival.path}: its outputs are not those of {model.path}; give what was made of that model")


@contextmanager
def _place(out: StrPath | None) -> Iterator[Path]:
    """Where the result is written; a temporary file, where nobody asked for one."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        yield Path(folder) / "model.onnx"


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def _plan(given: Plan | StrPath | None) -> Plan | None:
    return given if given is None or isinstance(given, Plan) else load_plan(given)


def _rules(given: RuleSource | None) -> Rules:
    if given is None:
        return DEFAULT_RULES
    return joined_rules(given) if isinstance(given, Mapping) else read_rules(Path(given))


def _samples(given: Calibration | None) -> Samples | None:
    if isinstance(given, str | PathLike):
        return Path(given)
    return given if given is None or isinstance(given, Mapping) else {IN_MEMORY: given}


def _extras(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the pipeline is given besides options, from the arguments of ``compress``."""
    paths = {name: _path(given[name]) for name in ("plan_out", "plan_weights")}
    return {**paths, "rules": _rules(given["rules"]), "progress": given["progress"], "page": _page(given)}


def _page(given: Mapping[str, Any]) -> pipeline.Page | None:
    """The page that was asked for, from the arguments of ``compress``."""
    if given["report"] is None:
        return None
    target = "the result" if given["out"] is None else str(Path(given["out"]))
    told = PageContext(title(given["model"]), target, _call(compress, given))
    return pipeline.Page(Path(given["report"]), partial(render, told))


def _call(function: Callable[..., object], given: Mapping[str, Any]) -> str:
    """A call as it was made, for a reader: what differs from the defaults, models in memory and arrays in short."""
    parts = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = given[name]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            parts += [] if value is None else [repr(title(value) if name == "model" else str(value))]
        elif value is not parameter.default and not callable(value):
            parts.append(f"{name}={str(value)!r}" if isinstance(value, PathLike) else f"{name}={reprlib.repr(value)}")
    return f"leanonnx.{function.__name__}({', '.join(parts)})"

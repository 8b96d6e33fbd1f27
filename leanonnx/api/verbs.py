"""The verbs of the command line as Python functions.

They take paths or models in memory, print nothing, and raise ``UserError`` (the request cannot be carried out) or
``Refusal`` (the answer is no).  Keywords are named and checked like the options of the command line.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from leanonnx.api.keywords import budget_of, compress_options
from leanonnx.api.progress import listening
from leanonnx.api.results import Analysis, Compressed, Timings
from leanonnx.api.sources import (
    CalibrationData,
    ModelSource,
    RuleSource,
    as_file,
    as_plan,
    as_rules,
    model_title,
    optional_path,
    result_file,
    several,
)
from leanonnx.commands.bench import benchmark
from leanonnx.commands.bench.report import bench_report
from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import Blocks, Minimise, Recover
from leanonnx.commands.compress.proving import compare_with_original
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.effort import DEFAULT_EFFORT, EffortName
from leanonnx.errors import ModelError, OptionError
from leanonnx.evaluation.user_scores import ScoreFunction
from leanonnx.graph.model import Model, load
from leanonnx.page.page import PageContext, render
from leanonnx.proof.proof import Proof
from leanonnx.ranking.criteria import Chains, Importance, Method, method_name
from leanonnx.reporting.inspection import network_report
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.timing import DEFAULT_TIMING_SECONDS
from leanonnx.surgery.plan import Plan, replay_plan
from leanonnx.system.clock import Progress
from leanonnx.system.gpu import Device
from leanonnx.system.outputs import StrPath


def compress(
    model: ModelSource,
    out: StrPath | None = None,
    *,
    keep: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    bytes: float | str | None = None,
    plan: Plan | StrPath | None = None,
    exact: bool = False,
    method: Method | Importance = "auto",
    chains: Chains = "cover",
    shape: Shapes | None = None,
    pin: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    plan_out: StrPath | None = None,
    plan_weights: StrPath | None = None,
    report: StrPath | None = None,
    calib: CalibrationData | None = None,
    images: ImageFormat = DEFAULT_IMAGE_FORMAT,
    teacher: StrPath | None = None,
    recover: Recover | None = None,
    effort: EffortName = DEFAULT_EFFORT,
    minutes: float | None = None,
    blocks: Blocks = "auto",
    device: Device = "cpu",
    min_agreement: float | None = None,
    max_deviation: float | None = None,
    min_psnr: float | None = None,
    score: str | ScoreFunction | None = None,
    max_drop: float | None = None,
    minimise: Minimise | None = None,
    align: Literal["auto"] | int = "auto",
    target: str = "auto",
    targets: StrPath | None = None,
    provider: Provider = "cpu",
    threads: int = 0,
    rules: RuleSource | None = None,
    library: StrPath | Sequence[StrPath] = (),
    freeze: bool = False,
    unshare: bool = False,
    int8: bool = False,
    best_effort: bool = False,
    prove_twice: bool = False,
    measure: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Remove channels until the model fits the budget, and prove the result.

    >>> small = compress("models/cs_unet.onnx", keep=0.25)
    >>> small.proof.passed, small.kernels.fraction <= 0.25
    (True, True)

    Args:
        model, out, plan_out, plan_weights, report: its path, or itself; files for result, plan, weights and a page.
        keep, macs, params, latency, bytes, plan, exact: the target; pass exactly one: a fraction of the original (for
            ``bytes`` also a size such as "5MB"), a plan, or True for a lossless reduction; or none with a tolerance.
        min_agreement, max_deviation, min_psnr: tolerances, which held-out samples of ``calib`` have to show.
        score, max_drop: your own: a function of path and arrays, or "module:function"; the most that it may fall.
        minimise: "latency", "macs" or "bytes"; None: the budget's metric, or else "latency" or "macs".
        method: how channels are ranked; or your own: kernels [conv groups, O, I, *taps] to scores [conv groups, O].
        chains, seed, shape: the chains of ``lean``; seed of random numbers; sizes of inputs with free axes, by name.
        pin, ignore: tensors or nodes whose channels are all kept; layers that keep their outputs and are not counted.
        calib, images, teacher: real inputs; the format of images; the network to fit to, if the model was cut.
        recover, blocks: "auto" refits weights, and replaces branches where ``calib`` shows that to be better.
        effort, minutes, device: "quick", "normal" or "thorough"; a limit on the time; "cuda" for sums on a GPU.
        align, target, targets: width multiple; the hardware that sets it; a file that ``calibrate_device`` stored.
        provider, threads, measure: where the result is to run; True times it (``latency`` always does).
        rules, library, progress: rules of your own; libraries of custom operators; called with stage, share done, item.
        int8, prove_twice: compute in 8-bit integers where ``calib`` shows that to be better; compare further runtimes.
        freeze, unshare, best_effort: make inputs that are weights constants; copy shared ones; return bad results.

    Raises:
        UserError, Refusal: exit codes 2 and 1 of the command line; nothing is written.
    """
    options = compress_options(locals(), budget=budget_of(locals()))
    with as_file(model) as file, result_file(out) as place, listening(progress) as listener:
        return Compressed.of(pipeline.compress_file(file, place, options, **_extras(locals(), listener)), place, model)


def analyse(
    model: ModelSource,
    *,
    shape: Shapes | None = None,
    rules: RuleSource | None = None,
    library: StrPath | Sequence[StrPath] = (),
) -> Analysis:
    """Analyse the channels of a model, their ties and pins, and its costs; ``leanonnx inspect`` on the command line.

    >>> model = analyse("models/cs_unet.onnx")
    >>> model.kernels, len(model.layers), [pin.tensor for pin in model.pins]
    (59488, 18, ['logits', 'input'])
    >>> model.why("logits", 0).pins[0].reason
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
        dag = pipeline.load_dag(source, shape or {}, as_rules(rules), several(library, Path))
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
    ``finetune``) differ from either; ``deviation`` measures how far.

    >>> small = compress("models/cs_unet.onnx", keep=0.5)
    >>> prove("models/cs_unet.onnx", small.model, small.plan).passed
    True
    >>> prove("models/cs_unet.onnx", small.model).passed
    False

    Args:
        base: the original.
        new: the compressed model.
        plan: the channels that were removed; None for a lossless reduction.
        shape, rules, library: as in ``compress``.
        seed: of the inputs.

    Raises:
        UserError: bad model or option, a plan of another model, or other inputs and outputs than the original's.
    """
    made = as_plan(plan)
    with as_file(base) as source, as_file(new) as candidate:
        dag = pipeline.load_dag(
            source, shape or {}, as_rules(rules), several(library, Path), bool(made and made.freezes_weights)
        )
        alive = None if made is None or made.exact else replay_plan(dag, made)
        rival = load(candidate, dag.model.libraries)
        benchmark.check_same_inputs(dag.model, rival)
        _check_same_outputs(dag.model, rival)
        try:
            return compare_with_original(dag, alive, candidate, seed)
        except RunFailed as error:
            raise ModelError(
                f"{model_title(new)}: cannot be run on the inputs of the original: {error}; give a model that was "
                "made from it"
            ) from error


def bench(
    a: ModelSource,
    b: ModelSource | None = None,
    *,
    provider: Provider = "cpu",
    threads: int | Sequence[int] = 0,
    batch: int | Sequence[int] = (),
    shape: Shapes | None = None,
    seconds: float = DEFAULT_TIMING_SECONDS,
    library: StrPath | Sequence[StrPath] = (),
    cuda_graph: bool = False,
    tf32: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Timings:
    """Time a model in onnxruntime, or two against each other in turns, each measurement in a fresh process.

    >>> timings = bench("models/cs_unet.onnx", threads=1, seconds=0.2)
    >>> timings.cases[0].outcome.median > 0
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
        progress: called with each stage; None: log, or bar in a notebook.

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
    with as_file(a) as source, listening(progress) as listener, ExitStack() as stack:
        other = None if b is None else stack.enter_context(as_file(b))
        cases = benchmark.run_bench(source, other, request, listener)
    return Timings(cases, bench_report(model_title(a), None if b is None else model_title(b), request, cases))


def _check_same_outputs(model: Model, rival: Model) -> None:
    mine, theirs = ([(v.name, v.type.tensor_type.elem_type) for v in m.proto.graph.output] for m in (model, rival))
    if mine != theirs:
        raise OptionError(f"{rival.path}: its outputs are not those of {model.path}; give what was made of that model")


def _extras(given: Mapping[str, Any], listener: Progress) -> dict[str, Any]:
    """Arguments of the pipeline besides options, from those of ``compress``."""
    paths = {name: optional_path(given[name]) for name in ("plan_out", "plan_weights")}
    return {**paths, "rules": as_rules(given["rules"]), "progress": listener, "page": _page(given)}


def _page(given: Mapping[str, Any]) -> pipeline.Page | None:
    """The page to be written, from the arguments of ``compress``; None for no page."""
    if given["report"] is None:
        return None
    target = "the result" if given["out"] is None else str(Path(given["out"]))
    context = PageContext(model_title(given["model"]), target, _call(compress, given))
    return pipeline.Page(Path(given["report"]), partial(render, context))


def _call(function: Callable[..., object], given: Mapping[str, Any]) -> str:
    """The source text of a call: arguments that differ from the defaults, models in memory and arrays abbreviated."""
    parts = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = given[name]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            parts += [] if value is None else [repr(model_title(value) if name == "model" else str(value))]
        elif callable(value):
            parts += [f"{name}={method_name(value)}"] if name == "method" else []
        elif value is not parameter.default:
            parts.append(f"{name}={str(value)!r}" if isinstance(value, PathLike) else f"{name}={reprlib.repr(value)}")
    return f"leanonnx.{function.__name__}({', '.join(parts)})"

"""Plans for PyTorch: what was planned on an exported ONNX file, carried out on the module that it came from.

    import leanonnx.torch

    plan = leanonnx.compress("net.onnx", keep=0.25).plan
    leanonnx.torch.apply_plan(module, plan, model="net.onnx")

The module is then as narrow as the compressed file and can be trained with the code that trained it.  It keeps its own
weights, cut; those that ``recover`` or fine-tuning changed in the file are not transferred.  ``forward`` is not
touched: where it holds literal channel numbers, they have to be adapted by hand, and until then the plan does not fit.
This module needs torch, which leanonnx itself does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from leanonnx.analysis.dag import ChannelDag
from leanonnx.api.sources import ModelSource, as_file, several, title
from leanonnx.commands.compress.pipeline import inspect
from leanonnx.commands.compress.workshop import operated
from leanonnx.errors import ModelError, PlanError, ProofFailed
from leanonnx.graph.model import Model, load
from leanonnx.numeric.channel_ids import Mask
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.spelling import option
from leanonnx.surgery.patch import plan_patch
from leanonnx.surgery.plan import Plan, load_plan, replay
from leanonnx.system.outputs import StrPath
from leanonnx.torch.cuts import Cut, planned_cuts, read_cuts
from leanonnx.torch.matching import Matches, matched, named_tensors
from leanonnx.torch.running import Inputs, ModuleTrace, as_feed, difference, ran
from leanonnx.torch.slicing import Slicing, carried_out, sliced

__all__ = ["Applied", "apply_plan", "verify"]

TOLERANCE = 1e-4
LITERALS = (
    "forward may hold numbers of channels, or move channels in a way that the plan does not keep: adapt it; the module "
    "is left as it is"
)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Applied:
    """What a plan has made of a module.

    Attributes:
        tensors: for each parameter and buffer that was cut, its shape before and after.
        renamed: parameters of constants that have another name, by that name.
        missing: constants of the plan that are no parameter: made by the exporter, or folded into others.
        error: largest relative error of the outputs against the compressed model; None if nothing was run.
    """

    tensors: Mapping[str, tuple[Shape, Shape]]
    renamed: Mapping[str, str]
    missing: tuple[str, ...]
    error: float | None


def apply_plan(
    module: nn.Module,
    plan: Plan | StrPath,
    model: ModelSource | None = None,
    *,
    names: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    library: StrPath | Sequence[StrPath] = (),
    tolerance: float = TOLERANCE,
) -> Applied:
    """Cut out of a module, in place, what a plan cuts out of its export; or raise and leave it as it is.

    Constants of the plan are found by their names.  With ``model``, those that the exporter renamed are found by their
    numbers, BatchNormalizations that it folded lose the channels of the layer before them, and the module is run: it
    must compute what the model computes, and afterwards what the compressed model computes.  Without it nothing is run,
    and whatever has another name must be in ``names``.

    Weights stay the module's own: those that ``recover`` changed are not transferred, in a file beside the plan or not.
    Parameters that are cut are new ones: make the optimizer afterwards.  Attributes of torch's modules
    (``in_channels``, ``groups``, ``num_features`` ...) follow; those of your own modules, and numbers in ``forward``,
    cannot.

    Args:
        module: what was exported, with the same weights if ``model`` is given.
        plan: a plan or its path; not one of ``exact``, which changes weights as well.
        model: the exported model that the plan was made from.
        names: names of parameters and buffers by those of the plan's constants.
        inputs: what to run the module on: an array or tensor, several in the order of the graph inputs, or by name;
            by default random ones.
        library: libraries of the model's custom operators.
        tolerance: largest relative error of the outputs.

    Raises:
        PlanError: the plan does not fit the module; every tensor that does not is named.
        ProofFailed: the module computes something else than the compressed model.
        UserError: bad model, or a plan of another one.
    """
    made = plan if isinstance(plan, Plan) else load_plan(plan)
    if made.exact:
        raise PlanError(
            f"{made.origin}: made with {option('exact', True)}, which changes weights as well; make one with a budget"
        )
    if model is None:
        return _by_names(module, planned_cuts(made), names or {})
    with as_file(model) as source:
        dag = inspect(source, libraries=several(library, Path), freeze=made.freezes)
        feed = dag.observation.feeds if inputs is None else as_feed(dag.model, inputs)
        return _proven(module, dag, replay(dag, made), names or {}, feed, tolerance)


def verify(
    module: nn.Module,
    model: ModelSource,
    inputs: Inputs | None = None,
    *,
    library: StrPath | Sequence[StrPath] = (),
    tolerance: float = TOLERANCE,
) -> float:
    """Run a module, in evaluation, and a model on the same inputs; the largest relative error of an output.

    Weights that ``recover`` or ``finetune`` have changed are not those of the module: compare with a model that was
    compressed without.

    Args:
        module: what takes the graph inputs in their order.
        model: what it should compute.
        inputs: as for ``apply_plan``.
        library: libraries of the model's custom operators.
        tolerance: largest relative error (L2 of the difference / L2 of the model's output).

    Raises:
        ProofFailed: they differ by more.
        PlanError: the module cannot be run.
        UserError: bad model or inputs.
    """
    with as_file(model) as source:
        loaded = load(source, several(library, Path))
        feed = observe(loaded, {}).feeds if inputs is None else as_feed(loaded, inputs)
        error = _error(module, loaded, loaded.path, feed)
    if not error <= tolerance:
        raise ProofFailed(
            f"the module is off by {error:.1e} from {title(model)}, more than {tolerance:.0e}; give the model that was "
            "exported from it, or compressed by the plan that cut it"
        )
    return error


def _by_names(module: nn.Module, cuts: list[Cut], names: Mapping[str, str]) -> Applied:
    """What a plan tells by itself."""
    matches = matched(module, cuts, names, None)
    slicing = sliced(module, matches, None)
    before = named_tensors(module)
    with carried_out(module, slicing):
        return _applied(before, slicing, matches, None)


def _proven(
    module: nn.Module, dag: ChannelDag, alive: Mask, names: Mapping[str, str], feed: Feed, tolerance: float
) -> Applied:
    """What a plan tells with the model that it was made from, checked by running the module before and after."""
    model, trace = dag.model, ModuleTrace()
    picks = sorted({dag.model.proto.graph.node[node].name for node, _ in plan_patch(dag, alive).picks})
    if picks:
        raise PlanError(
            f"{', '.join(map(repr, picks))} would join only some of the channels that it reads, which a module cannot "
            f"follow: the plan removes single kernels (of a dense network, or by {option('chains', 'through')} or "
            f"{option('chains', 'free')}); make one with {option('chains', 'cover')}"
        )
    error = _error(module, model, model.path, feed, trace)
    if not error <= tolerance:
        raise PlanError(
            f"the module does not compute what {model.path} computes (relative error {error:.1e}); give it the weights "
            "that were exported, or leave out model= to go by names alone"
        )
    matches = matched(module, read_cuts(dag, alive), names, trace)
    slicing = sliced(module, matches, trace)
    before = named_tensors(module)
    with carried_out(module, slicing):
        try:
            error = _error(module, model, operated(dag, alive, clean=False).proto, feed)
        except PlanError as reason:
            raise PlanError(f"once cut as planned, {reason}; {LITERALS}") from reason
        if not error <= tolerance:
            raise ProofFailed(f"once cut as planned, the module is off by {error:.1e}; {LITERALS}")
        return _applied(before, slicing, matches, error)


def _error(
    module: nn.Module, model: Model, source: Path | onnx.ModelProto, feed: Feed, trace: ModuleTrace | None = None
) -> float:
    """How far a module is from a model with the interface and libraries of ``model``."""
    try:
        (wanted,) = run(source, [feed], libraries=model.libraries)
    except RunFailed as error:
        raise ModelError(f"{model.path}: cannot be run on the inputs: {error}; give others with inputs=") from error
    return difference(wanted, ran(module, feed, trace))


def _applied(before: Mapping[str, torch.Tensor], slicing: Slicing, matches: Matches, error: float | None) -> Applied:
    shapes = {name: (tuple(before[name].shape), tuple(new.shape)) for name, new in slicing.tensors.items()}
    renamed = {cut.name: match.name for cut, match in matches.found if cut.name != match.name}
    return Applied(shapes, renamed, tuple(dict.fromkeys(cut.name for cut in matches.missing)), error)

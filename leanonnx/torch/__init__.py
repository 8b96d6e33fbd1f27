"""Apply plans to PyTorch: cut a module as planned on the ONNX file that was exported from it.

    import leanonnx.torch

    plan = leanonnx.compress("net.onnx", keep=0.25).plan
    leanonnx.torch.apply_plan(module, plan, model="net.onnx")

The module is then as narrow as the compressed file and can be trained with the original training code.  It keeps its
own weights, sliced; weights that ``recover`` or fine-tuning changed in the file are not transferred.  ``forward`` stays
unchanged: literal numbers of channels in it must be adapted by hand, and until then the plan does not fit.
This module needs torch; leanonnx itself does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from leanonnx.analysis.dag import ChannelDag
from leanonnx.api.sources import ModelSource, as_file, model_title, several
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.commands.compress.pruning import pruned_model
from leanonnx.errors import ModelError, PlanError, ProofFailed
from leanonnx.graph.model import Model, load
from leanonnx.numeric.channel_ids import Mask, Shape
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.spelling import option
from leanonnx.surgery.patch import plan_patch
from leanonnx.surgery.plan import Plan, load_plan, replay_plan
from leanonnx.system.outputs import StrPath
from leanonnx.torch.cuts import Cut, cuts_of_mask, planned_cuts
from leanonnx.torch.matching import Matches, match_parameters, named_tensors
from leanonnx.torch.running import ModuleInputs, ModuleTrace, as_feed, output_error, run_module
from leanonnx.torch.slicing import Slicing, apply_slicing, slice_module

__all__ = ["AppliedPlan", "apply_plan", "verify"]

MODULE_TOLERANCE = 1e-4
LITERALS_ADVICE = (
    "forward may hold numbers of channels, or move channels in a way that the plan does not keep: adapt it; the module "
    "is left as it is"
)


@dataclass(frozen=True, kw_only=True)
class AppliedPlan:
    """Result of applying a plan to a module.

    Attributes:
        tensors: shapes of each parameter and buffer that was cut, before and after.
        renamed: parameters by the names of their constants, where the two differ.
        missing: constants of the plan without a parameter: created by the exporter, or folded into others.
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
    inputs: ModuleInputs | None = None,
    library: StrPath | Sequence[StrPath] = (),
    tolerance: float = MODULE_TOLERANCE,
) -> AppliedPlan:
    """Remove from a module, in place, the channels that a plan removes from its export; leave it unchanged on errors.

    Constants of the plan are matched with parameters by name.  With ``model``, constants that the exporter renamed are
    matched by their values, BatchNormalizations that it folded lose the channels of the layer before them, and the
    module is run before and after: its outputs must match those of the original and the compressed model.  Without
    ``model``, nothing is run, and every constant whose name differs must be in ``names``.

    The weights are the module's own: those that ``recover`` changed are not transferred, even from a file beside the
    plan.  Cut parameters are new objects: create the optimizer afterwards.  Attributes of torch's own modules
    (``in_channels``, ``groups``, ``num_features`` ...) are updated; those of your modules, and numbers in ``forward``,
    are not.

    Args:
        module: the exported module, with the same weights if ``model`` is given.
        plan: a plan or its path; not one of ``exact``, which also changes weights.
        model: the exported model that the plan was made from.
        names: names of parameters and buffers by the names of the plan's constants.
        inputs: inputs to run the module on: an array or tensor, several in the order of the graph inputs, or by name;
            random ones by default.
        library: libraries of the model's custom operators.
        tolerance: largest relative error of the outputs.

    Raises:
        PlanError: the plan does not fit the module; the message names every tensor that does not fit.
        ProofFailed: the outputs of the module differ from those of the compressed model.
        UserError: bad model, or a plan of another model.
    """
    made = plan if isinstance(plan, Plan) else load_plan(plan)
    if made.exact:
        raise PlanError(
            f"{made.origin}: made with {option('exact', True)}, which changes weights as well; make one with a budget"
        )
    made.check_branches()
    if model is None:
        return _apply_by_names(module, planned_cuts(made), names or {})
    with as_file(model) as source:
        dag = load_dag(source, libraries=several(library, Path), freeze=made.freezes_weights)
        feed = dag.observation.feeds if inputs is None else as_feed(dag.model, inputs)
        return _apply_and_compare(module, dag, replay_plan(dag, made), names or {}, feed, tolerance)


def verify(
    module: nn.Module,
    model: ModelSource,
    inputs: ModuleInputs | None = None,
    *,
    library: StrPath | Sequence[StrPath] = (),
    tolerance: float = MODULE_TOLERANCE,
) -> float:
    """Run a module in evaluation mode and a model on the same inputs; return the largest relative error of an output.

    Weights that ``recover`` or ``finetune`` changed are not in the module: compare it with a model that was compressed
    without them.

    Args:
        module: a module that takes the graph inputs in their order.
        model: the reference.
        inputs: as for ``apply_plan``.
        library: libraries of the model's custom operators.
        tolerance: largest relative error (L2 of the difference / L2 of the model's output).

    Raises:
        ProofFailed: the error is larger than ``tolerance``.
        PlanError: the module cannot be run.
        UserError: bad model or inputs.
    """
    with as_file(model) as source:
        loaded = load(source, several(library, Path))
        feed = observe(loaded, {}).feeds if inputs is None else as_feed(loaded, inputs)
        error = _error(module, loaded, loaded.path, feed)
    if not error <= tolerance:
        raise ProofFailed(
            f"the module is off by {error:.1e} from {model_title(model)}, more than {tolerance:.0e}; give the model "
            "that was exported from it, or compressed by the plan that cut it"
        )
    return error


def _apply_by_names(module: nn.Module, cuts: list[Cut], names: Mapping[str, str]) -> AppliedPlan:
    """Apply a plan by the names of its constants alone."""
    matches = match_parameters(module, cuts, names, None)
    slicing = slice_module(module, matches, None)
    before = named_tensors(module)
    with apply_slicing(module, slicing):
        return _describe_result(before, slicing, matches, None)


def _apply_and_compare(
    module: nn.Module, dag: ChannelDag, alive: Mask, names: Mapping[str, str], feed: Feed, tolerance: float
) -> AppliedPlan:
    """Apply a plan with the model that it was made from, and compare the outputs before and after."""
    model, trace = dag.model, ModuleTrace()
    picks = sorted({dag.model.proto.graph.node[node].name for node, _ in plan_patch(dag, alive).selects})
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
    matches = match_parameters(module, cuts_of_mask(dag, alive), names, trace)
    slicing = slice_module(module, matches, trace)
    before = named_tensors(module)
    with apply_slicing(module, slicing):
        try:
            error = _error(module, model, pruned_model(dag, alive), feed)
        except PlanError as reason:
            raise PlanError(f"once cut as planned, {reason}; {LITERALS_ADVICE}") from reason
        if not error <= tolerance:
            raise ProofFailed(f"once cut as planned, the module is off by {error:.1e}; {LITERALS_ADVICE}")
        return _describe_result(before, slicing, matches, error)


def _error(
    module: nn.Module, model: Model, source: Path | onnx.ModelProto, feed: Feed, trace: ModuleTrace | None = None
) -> float:
    """Return the largest relative error of a module against ``source``, which has the interface of ``model``."""
    try:
        (expected,) = run(source, [feed], libraries=model.libraries)
    except RunFailed as error:
        raise ModelError(f"{model.path}: cannot be run on the inputs: {error}; give others with inputs=") from error
    return output_error(expected, run_module(module, feed, trace))


def _describe_result(
    before: Mapping[str, torch.Tensor], slicing: Slicing, matches: Matches, error: float | None
) -> AppliedPlan:
    shapes = {name: (tuple(before[name].shape), tuple(new.shape)) for name, new in slicing.tensors.items()}
    renamed = {cut.name: match.name for cut, match in matches.pairs if cut.name != match.name}
    return AppliedPlan(
        tensors=shapes, renamed=renamed, missing=tuple(dict.fromkeys(cut.name for cut in matches.missing)), error=error
    )

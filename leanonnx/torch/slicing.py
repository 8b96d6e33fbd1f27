"""Slice the tensors and attributes of a module, all at once or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leanonnx.errors import PlanError
from leanonnx.torch.cuts import Cut, KeptIndices
from leanonnx.torch.matching import Matches, named_tensors
from leanonnx.torch.modules import BATCH_NORM_MODULES, Attributes, TensorAxis, is_user_class, module_kind
from leanonnx.torch.running import ModuleTrace

EXPORT_ADVICE = "export with dynamo=False and training=torch.onnx.TrainingMode.PRESERVE"
CONFLICTING_SLICES = "is used at several places, which need different slices of it"


@dataclass(frozen=True)
class Slicing:
    """New tensors by parameter name (a shared one under each of its names), and new attributes by module."""

    tensors: dict[str, torch.Tensor]
    attributes: dict[nn.Module, Attributes]


class _Draft:
    """Kept indices of the tensors of a module, collected from a plan.

    Attributes:
        tensors: parameters and buffers by name.
        modules: names of the inner modules.
        known: kept indices by inner module and tensor axis.
        kept: kept indices by tensor (its id) and axis.
        problems: descriptions of everything that does not fit.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors = named_tensors(module)
        self.modules = {inner: name for name, inner in module.named_modules()}
        self.known: dict[nn.Module, dict[TensorAxis, KeptIndices]] = {inner: {} for inner in self.modules}
        self.kept: dict[int, dict[int, KeptIndices]] = {}
        self.problems: list[str] = []

    def add(self, name: str, kept: Sequence[KeptIndices]) -> None:
        """Add the kept indices of a parameter, as its constant has them."""
        for axis, places in enumerate(kept):
            self._set(self.kept.setdefault(id(self.tensors[name]), {}), axis, places, name)

    def propagate(self, inner: nn.Module) -> None:
        """Propagate kept indices between the tensors of a module."""
        kind, known = module_kind(inner), self.known[inner]
        if kind is None:
            return
        own = {local: tensor for local, tensor in named_tensors(inner).items() if "." not in local}
        for local, tensor in own.items():
            for number, places in self.kept.get(id(tensor), {}).items():
                self._set(known, (local, number), places, self._parameter_name(inner, local))
        for axes in kind.tied_axes:
            for places in [known[axis] for axis in axes if axis in known]:
                for axis in axes:
                    self._set(known, axis, places, self._parameter_name(inner, axis[0]))
        if known:
            for axis, places in self._infer(inner, known).items():
                self._set(known, axis, places, self._parameter_name(inner, axis[0]))
        for (local, number), places in known.items():
            if local in own:
                self._set(self.kept.setdefault(id(own[local]), {}), number, places, self._parameter_name(inner, local))

    def _infer(self, inner: nn.Module, known: dict[TensorAxis, KeptIndices]) -> Any:
        kind = module_kind(inner)
        assert kind is not None
        try:
            return kind.infer_indices(inner, known)
        except PlanError as error:
            self.problems.append(f"'{self.modules[inner]}': {error}")
            return {}

    def propagate_to_norm(self, inner: nn.Module, source: nn.Module) -> None:
        """Give a norm the kept channels of the module whose output it reads."""
        places = self.known[source].get(("bias", 0))
        if places is not None:
            self._set(self.known[inner], ("weight", 0), places, self._parameter_name(inner, "weight"))
            self.propagate(inner)

    def _parameter_name(self, inner: nn.Module, local: str) -> str:
        return f"{self.modules[inner]}.{local}".lstrip(".")

    def _set(self, known: dict[Any, KeptIndices], key: Any, places: KeptIndices, name: str) -> None:
        if known.setdefault(key, places) != places:
            text = f"'{name}' {CONFLICTING_SLICES}"
            self.problems += [text] if text not in self.problems else []

    def cut_axes(self) -> dict[str, dict[int, KeptIndices]]:
        """Return the axes that lose indices, by the names of their tensors."""
        result = {}
        for name, tensor in self.tensors.items():
            axes = self.kept.get(id(tensor), {})
            cut = {axis: places for axis, places in axes.items() if len(places) < tensor.shape[axis]}
            if cut:
                result[name] = cut
        return result

    def attributes(self) -> dict[nn.Module, Attributes]:
        """Return the new attributes of all modules."""
        result = {}
        for inner, known in self.known.items():
            kind = module_kind(inner)
            if kind is not None and known:
                try:
                    result[inner] = kind.new_attributes(inner, known)
                except PlanError as error:
                    self.problems.append(f"'{self.modules[inner]}': {error}")
        return result


def slice_module(module: nn.Module, matches: Matches, trace: ModuleTrace | None) -> Slicing:
    """Slice the tensors of a module as planned; the module itself is not changed.

    Raises:
        PlanError: the plan does not fit; the message names every tensor that does not fit.
    """
    draft = _Draft(module)
    for cut, match in matches.pairs:
        draft.add(match.name, match.kept)
        if cut.has_other_slices:
            draft.problems.append(f"'{match.name}' {CONFLICTING_SLICES}")
    for inner in draft.modules:
        draft.propagate(inner)
    for inner, sources in trace.norm_sources.items() if trace else ():
        for source in sources:
            draft.propagate_to_norm(inner, source)
    cut_axes, attributes = draft.cut_axes(), draft.attributes()
    draft.problems += _unknown_modules(draft, cut_axes) + _missing_parameters(matches)
    draft.problems += _unknown_norms(draft) if trace is None else []
    if draft.problems:
        raise PlanError(
            f"the plan does not fit the module, which is left as it is: {'; '.join(draft.problems)}; give the module "
            "that was exported"
        )
    return Slicing({name: _select(draft.tensors[name], axes) for name, axes in cut_axes.items()}, attributes)


def _unknown_modules(draft: _Draft, cut_axes: dict[str, dict[int, KeptIndices]]) -> list[str]:
    """Describe tensors to cut in modules whose attributes are unknown."""
    problems = []
    for inner, name in draft.modules.items():
        mine = [local for local in cut_axes if local.rpartition(".")[0] == name]
        if mine and module_kind(inner) is None and not is_user_class(inner):
            problems.append(f"{', '.join(map(repr, mine))}: nothing is known of {type(inner).__name__}")
    return problems


def _missing_parameters(matches: Matches) -> list[str]:
    """Describe cut constants without a parameter, unless they follow from others or were never learnt."""
    nodes = {cut.node for cut, _ in matches.pairs} - {None}
    lost: dict[str, Cut] = {}
    for cut in matches.missing:
        vector = sum(size > 1 for size in cut.shape) <= 1
        harmless = cut.is_whole and not cut.has_other_slices
        if not (harmless or cut.is_uniform or (vector and cut.node in nodes)):
            lost[cut.name] = cut
    if not lost:
        return []
    names = ", ".join(f"'{name}' {list(cut.shape)}" for name, cut in lost.items())
    known = all(cut.value is not None for cut in lost.values())
    advice = EXPORT_ADVICE if known else "give the exported model= to find them by their numbers"
    if any(cut.is_folded for cut in lost.values()):
        advice = "the model computes them: make parametrisations permanent, torch.nn.utils.parametrize"
    return [f"no parameters are known for {names} ({advice}, or name them with names=)"]


def _unknown_norms(draft: _Draft) -> list[str]:
    """Describe BatchNormalizations that are not in the plan: the exporter has folded them, or they are unused."""
    names = [
        name
        for inner, name in draft.modules.items()
        if isinstance(inner, BATCH_NORM_MODULES) and not draft.known[inner]
    ]
    if not names:
        return []
    text = ", ".join(map(repr, names))
    return [f"the plan does not mention {text}, which the exporter has folded (give model=, or {EXPORT_ADVICE})"]


def _select(tensor: torch.Tensor, axes: dict[int, KeptIndices]) -> torch.Tensor:
    result = tensor.detach()
    for axis, places in axes.items():
        result = result.index_select(axis, torch.tensor(places, dtype=torch.long, device=tensor.device))
    return result.clone()


@contextmanager
def apply_slicing(module: nn.Module, slicing: Slicing) -> Iterator[None]:
    """Set new tensors and attributes of a module; restore the old ones if an error is raised inside."""
    tensors = named_tensors(module)
    before = {name: tensors[name] for name in slicing.tensors}
    attributes = {inner: {name: getattr(inner, name) for name in new} for inner, new in slicing.attributes.items()}
    made: dict[int, torch.Tensor] = {}
    after = {name: made.setdefault(id(before[name]), _like(before[name], new)) for name, new in slicing.tensors.items()}
    try:
        _put(module, after, slicing.attributes)
        yield
    except BaseException:
        _put(module, before, attributes)
        raise


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _put(module: nn.Module, tensors: dict[str, torch.Tensor], attributes: dict[nn.Module, Attributes]) -> None:
    for name, tensor in tensors.items():
        owner, _, local = name.rpartition(".")
        setattr(module.get_submodule(owner), local, tensor)
    for inner, new in attributes.items():
        for name, value in new.items():
            setattr(inner, name, value)

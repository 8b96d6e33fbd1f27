"""What has to be cut out of a module: all its tensors and attributes at once, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leanonnx.errors import PlanError
from leanonnx.torch.cuts import Cut, Kept
from leanonnx.torch.matching import Matches, named_tensors
from leanonnx.torch.modules import BATCH_NORMS, Attributes, Axis, kind_of, own_class
from leanonnx.torch.running import ModuleTrace

EXPORT = "export with dynamo=False and training=torch.onnx.TrainingMode.PRESERVE"
DIFFERENTLY = "is used at several places, which need different slices of it"


@dataclass(frozen=True)
class Slicing:
    """New tensors by parameter name, each under all its names, and new attributes by module."""

    tensors: dict[str, torch.Tensor]
    attributes: dict[nn.Module, Attributes]


class _Draft:
    """What is known of the axes of each tensor, put together; ``wrong`` says what does not fit."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = named_tensors(module)
        self.modules = {inner: name for name, inner in module.named_modules()}
        self.known: dict[nn.Module, dict[Axis, Kept]] = {inner: {} for inner in self.modules}
        self.kept: dict[int, dict[int, Kept]] = {}
        self.wrong: list[str] = []

    def tell(self, name: str, kept: Sequence[Kept]) -> None:
        """What a constant tells of its parameter."""
        for axis, places in enumerate(kept):
            self._set(self.kept.setdefault(id(self.tensors[name]), {}), axis, places, name)

    def settle(self, inner: nn.Module) -> None:
        """Join what is known of the tensors of a module with each other."""
        kind, known = kind_of(inner), self.known[inner]
        if kind is None:
            return
        own = {local: tensor for local, tensor in named_tensors(inner).items() if "." not in local}
        for local, tensor in own.items():
            for number, places in self.kept.get(id(tensor), {}).items():
                self._set(known, (local, number), places, self._named(inner, local))
        for axes in kind.joined:
            for places in [known[axis] for axis in axes if axis in known]:
                for axis in axes:
                    self._set(known, axis, places, self._named(inner, axis[0]))
        if known:
            for axis, places in self._inferred(inner, known).items():
                self._set(known, axis, places, self._named(inner, axis[0]))
        for (local, number), places in known.items():
            if local in own:
                self._set(self.kept.setdefault(id(own[local]), {}), number, places, self._named(inner, local))

    def _inferred(self, inner: nn.Module, known: dict[Axis, Kept]) -> Any:
        kind = kind_of(inner)
        assert kind is not None
        try:
            return kind.inferred(inner, known)
        except PlanError as error:
            self.wrong.append(f"'{self.modules[inner]}': {error}")
            return {}

    def follow(self, inner: nn.Module, source: nn.Module) -> None:
        """A norm that reads what a module puts out has its channels."""
        places = self.known[source].get(("bias", 0))
        if places is not None:
            self._set(self.known[inner], ("weight", 0), places, self._named(inner, "weight"))
            self.settle(inner)

    def _named(self, inner: nn.Module, local: str) -> str:
        return f"{self.modules[inner]}.{local}".lstrip(".")

    def _set(self, known: dict[Any, Kept], key: Any, places: Kept, name: str) -> None:
        if known.setdefault(key, places) != places:
            text = f"'{name}' {DIFFERENTLY}"
            self.wrong += [text] if text not in self.wrong else []

    def changed(self) -> dict[str, dict[int, Kept]]:
        """Axes of which something goes, by the names of their tensors."""
        found = {}
        for name, tensor in self.tensors.items():
            axes = self.kept.get(id(tensor), {})
            cut = {axis: places for axis, places in axes.items() if len(places) < tensor.shape[axis]}
            if cut:
                found[name] = cut
        return found

    def attributes(self) -> dict[nn.Module, Attributes]:
        """New attributes of all modules."""
        found = {}
        for inner, known in self.known.items():
            kind = kind_of(inner)
            if kind is not None and known:
                try:
                    found[inner] = kind.attributes(inner, known)
                except PlanError as error:
                    self.wrong.append(f"'{self.modules[inner]}': {error}")
        return found


def sliced(module: nn.Module, matches: Matches, trace: ModuleTrace | None) -> Slicing:
    """What a plan makes of a module, which is not touched.

    Raises:
        PlanError: the plan does not fit; every tensor that does not is named.
    """
    draft = _Draft(module)
    for cut, match in matches.found:
        draft.tell(match.name, match.kept)
        if cut.apart:
            draft.wrong.append(f"'{match.name}' {DIFFERENTLY}")
    for inner in draft.modules:
        draft.settle(inner)
    for inner, sources in trace.behind.items() if trace else ():
        for source in sources:
            draft.follow(inner, source)
    changed, attributes = draft.changed(), draft.attributes()
    draft.wrong += _foreign(draft, changed) + _missing(matches)
    draft.wrong += _leftover(draft) if trace is None else []
    if draft.wrong:
        raise PlanError(
            f"the plan does not fit the module, which is left as it is: {'; '.join(draft.wrong)}; give the module that "
            "was exported"
        )
    return Slicing({name: _taken(draft.tensors[name], axes) for name, axes in changed.items()}, attributes)


def _foreign(draft: _Draft, changed: dict[str, dict[int, Kept]]) -> list[str]:
    """Tensors that would be cut in modules whose attributes are not known."""
    found = []
    for inner, name in draft.modules.items():
        mine = [local for local in changed if local.rpartition(".")[0] == name]
        if mine and kind_of(inner) is None and not own_class(inner):
            found.append(f"{', '.join(map(repr, mine))}: nothing is known of {type(inner).__name__}")
    return found


def _missing(matches: Matches) -> list[str]:
    """Constants that are cut and are no parameter, but for what follows from others or was never learnt."""
    nodes = {cut.node for cut, _ in matches.found} - {None}
    lost: dict[str, Cut] = {}
    for cut in matches.missing:
        vector = sum(size > 1 for size in cut.shape) <= 1
        harmless = cut.whole and not cut.apart
        if not (harmless or cut.uniform or (vector and cut.node in nodes)):
            lost[cut.name] = cut
    if not lost:
        return []
    names = ", ".join(f"'{name}' {list(cut.shape)}" for name, cut in lost.items())
    known = all(cut.value is not None for cut in lost.values())
    advice = EXPORT if known else "give the exported model= to find them by their numbers"
    if any(cut.folded for cut in lost.values()):
        advice = "the model computes them: make parametrisations permanent, torch.nn.utils.parametrize"
    return [f"no parameters are known for {names} ({advice}, or name them with names=)"]


def _leftover(draft: _Draft) -> list[str]:
    """BatchNormalizations that the plan knows nothing of: the exporter has folded them, or they are not used."""
    names = [name for inner, name in draft.modules.items() if isinstance(inner, BATCH_NORMS) and not draft.known[inner]]
    if not names:
        return []
    text = ", ".join(map(repr, names))
    return [f"the plan does not tell of {text}, which the exporter has folded (give model=, or {EXPORT})"]


def _taken(tensor: torch.Tensor, axes: dict[int, Kept]) -> torch.Tensor:
    found = tensor.detach()
    for axis, places in axes.items():
        found = found.index_select(axis, torch.tensor(places, dtype=torch.long, device=tensor.device))
    return found.clone()


@contextmanager
def carried_out(module: nn.Module, slicing: Slicing) -> Iterator[None]:
    """Put new tensors and attributes into a module; what was there comes back where an error is raised inside."""
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

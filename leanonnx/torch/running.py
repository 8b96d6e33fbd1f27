"""Running a torch module on the inputs of an ONNX model, beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from leanonnx.errors import OptionError, PlanError
from leanonnx.graph.model import Model, first_line
from leanonnx.numeric.arrays import Array
from leanonnx.proof.compare import relative, scales
from leanonnx.runtime.sessions import Feed
from leanonnx.torch.modules import NORMS

PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that, in evaluation, put out what they read."""
Inputs = Any
"""Arrays or tensors: one, several in the order of the graph inputs, or by their names."""


@dataclass(frozen=True)
class ModuleTrace:
    """What a run showed: modules in the order of their calls, and after which modules each norm came at once."""

    calls: list[nn.Module] = field(default_factory=list)
    behind: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)


def as_feed(model: Model, inputs: Inputs) -> Feed:
    """Inputs by the names of the graph inputs, in their order.

    Raises:
        OptionError: they are not as many, or have other names.
    """
    names = [value.name for value in model.inputs]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif isinstance(inputs, Sequence):
        given = dict(zip(names, inputs, strict=False)) if len(inputs) == len(names) else {}
    else:
        given = {names[0]: inputs} if len(names) == 1 else {}
    if set(given) != set(names):
        raise OptionError(f"the inputs do not fit: {model.path} takes {', '.join(map(repr, names))}; give one for each")
    return {name: _array(given[name]) for name in names}


def _array(value: Any) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def ran(module: nn.Module, feed: Feed, trace: ModuleTrace | None) -> list[Array]:
    """Outputs of a module in evaluation, whose inputs are those of the model in their order.

    Raises:
        PlanError: it cannot be run.
    """
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    with _evaluating(module), torch.no_grad(), ExitStack() as stack:
        if trace is not None:
            stack.enter_context(_traced(module, trace))
        try:
            found = module(*(torch.from_numpy(np.array(value)).to(device) for value in feed.values()))
        except Exception as error:  # whatever the user's code raises
            raise PlanError(f"the module cannot be run: {type(error).__name__}: {first_line(error)}") from error
    return [tensor.cpu().numpy() for tensor in _tensors(found)]


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    """The tensors of an output, however they are packed."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from _tensors(value)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


@contextmanager
def _traced(module: nn.Module, trace: ModuleTrace) -> Iterator[None]:
    """Watch the calls of all modules; a tensor is known by its identity, so outputs are held until the end."""
    made: dict[int, tuple[torch.Tensor, nn.Module]] = {}

    def begun(inner: nn.Module, given: tuple[Any, ...]) -> None:
        trace.calls.append(inner)
        if isinstance(inner, NORMS) and given and id(given[0]) in made:
            trace.behind.setdefault(inner, set()).add(made[id(given[0])][1])

    def ended(inner: nn.Module, given: tuple[Any, ...], found: Any) -> None:
        if isinstance(found, torch.Tensor) and not list(inner.children()) and not isinstance(inner, PASSING):
            made[id(found)] = (found, inner)

    hooks = [hook for inner in module.modules() for hook in _hooked(inner, begun, ended)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooked(inner: nn.Module, begun: Any, ended: Any) -> list[Any]:
    return [inner.register_forward_pre_hook(begun), inner.register_forward_hook(ended)]


def difference(wanted: list[Array], found: list[Array]) -> float:
    """Relative L2 error of the output that differs most; infinite where outputs are missing or of other shapes."""
    if len(wanted) != len(found):
        return float("inf")
    floors = scales([wanted])
    pairs = zip(wanted, found, floors, strict=True)
    return max((relative(a, b, floor) for a, b, floor in pairs), default=0.0)

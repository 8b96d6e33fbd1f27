"""Run a torch module on the inputs of an ONNX model and compare their outputs."""

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
from leanonnx.proof.compare import output_floors, relative_error
from leanonnx.runtime.sessions import Feed
from leanonnx.torch.modules import NORM_MODULES

IDENTITY_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that return their input unchanged in evaluation mode."""
ModuleInputs = Any
"""An array or tensor, several in the order of the graph inputs, or a mapping by name."""


@dataclass(frozen=True)
class ModuleTrace:
    """Modules in the order of their calls in a run, and the modules whose outputs each norm reads directly."""

    calls: list[nn.Module] = field(default_factory=list)
    norm_sources: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)


def as_feed(model: Model, inputs: ModuleInputs) -> Feed:
    """Arrange inputs by the names of the graph inputs, in their order.

    Raises:
        OptionError: the number or the names of the inputs differ.
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


def run_module(module: nn.Module, feed: Feed, trace: ModuleTrace | None) -> list[Array]:
    """Run a module in evaluation mode on the inputs of the model, in their order, and return its outputs.

    Raises:
        PlanError: the module cannot be run.
    """
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    with _evaluation_mode(module), torch.no_grad(), ExitStack() as stack:
        if trace is not None:
            stack.enter_context(_record_calls(module, trace))
        try:
            result = module(*(torch.from_numpy(np.array(value)).to(device) for value in feed.values()))
        except Exception as error:  # whatever the user's code raises
            raise PlanError(f"the module cannot be run: {type(error).__name__}: {first_line(error)}") from error
    return [tensor.cpu().numpy() for tensor in _tensors(result)]


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an output, flattening mappings and sequences."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode


@contextmanager
def _record_calls(module: nn.Module, trace: ModuleTrace) -> Iterator[None]:
    """Record the calls of all modules in ``trace``; outputs are kept until the end, as tensors are told by identity."""
    sources: dict[int, tuple[torch.Tensor, nn.Module]] = {}

    def on_enter(inner: nn.Module, args: tuple[Any, ...]) -> None:
        trace.calls.append(inner)
        if isinstance(inner, NORM_MODULES) and args and id(args[0]) in sources:
            trace.norm_sources.setdefault(inner, set()).add(sources[id(args[0])][1])

    def on_exit(inner: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor) and not list(inner.children()) and not isinstance(inner, IDENTITY_MODULES):
            sources[id(output)] = (output, inner)

    hooks = [hook for inner in module.modules() for hook in _register_hooks(inner, on_enter, on_exit)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _register_hooks(inner: nn.Module, on_enter: Any, on_exit: Any) -> list[Any]:
    return [inner.register_forward_pre_hook(on_enter), inner.register_forward_hook(on_exit)]


def output_error(expected: list[Array], actual: list[Array]) -> float:
    """Return the largest relative L2 error of an output; infinite if outputs are missing or have other shapes."""
    if len(expected) != len(actual):
        return float("inf")
    floors = output_floors([expected])
    pairs = zip(expected, actual, floors, strict=True)
    return max((relative_error(a, b, floor) for a, b, floor in pairs), default=0.0)

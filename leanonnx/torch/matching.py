"""Match the constants of an export with the parameters of its module.

1. By the name that the user gives, or by the constant's own name: exporters keep the names of unchanged tensors.
2. By equal values, transposed or not: exporters rename weights that they transpose or reshape.
3. By the values of a weight with the following BatchNormalization folded in, as exporters do.
4. By values equal up to rounding: those that the model computes from constants (weight norm) are the weights of the
   module without the parametrisation.

If several parameters hold the same values (as many untrained ones do), the nodes that read them correspond to the calls
of their modules, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from leanonnx.errors import PlanError
from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array
from leanonnx.torch.cuts import Cut, KeptIndices
from leanonnx.torch.modules import BATCH_NORM_MODULES, TRANSPOSED_CONVOLUTION_MODULES
from leanonnx.torch.running import ModuleTrace

FOLDING_TOLERANCE = 1e-4
"""Largest rounding error of a folded weight, relative to the largest weight."""
AxisOrder = tuple[int, ...]
"""Axis of the constant for each axis of the parameter; -1 for an axis of size 1 that the constant lacks."""


@dataclass(frozen=True)
class Match:
    """A parameter, by its name, and the indices kept on each of its axes."""

    name: str
    kept: tuple[KeptIndices, ...]


@dataclass(frozen=True)
class Matches:
    """Constants with their parameters, and constants without one."""

    pairs: tuple[tuple[Cut, Match], ...]
    missing: tuple[Cut, ...]


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers under each of their names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def match_parameters(
    module: nn.Module, cuts: Sequence[Cut], names: Mapping[str, str], trace: ModuleTrace | None
) -> Matches:
    """Find the parameters of constants; by their values only if a ``trace`` of the module is given.

    Raises:
        PlanError: ``names`` holds names that do not exist, or the shapes of constant and parameter differ.
    """
    tensors = named_tensors(module)
    _check_names(names, {cut.name for cut in cuts}, tensors)
    pairs: list[tuple[Cut, Match]] = []
    missing: list[Cut] = []
    for cut in cuts:
        name = names.get(cut.name, cut.name)
        if name in tensors:
            pairs.append((cut, _match_by_name(cut, name, tensors[name])))
        else:
            missing.append(cut)
    if trace is not None:
        more, missing = _match_by_values(module, missing, {match.name for _, match in pairs}, trace)
        pairs += more
    return Matches(tuple(pairs), tuple(missing))


def _check_names(names: Mapping[str, str], known: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> None:
    wrong = [f"constant '{name}'" for name in names if name not in known]
    wrong += [f"parameter '{name}'" for name in names.values() if name not in tensors]
    if wrong:
        raise PlanError(f"names: there is no {' and no '.join(wrong)}; give {{constant of the plan: parameter}}")


def _match_by_name(cut: Cut, name: str, tensor: torch.Tensor) -> Match:
    """Match a constant with a parameter whose name is known."""
    orders = _orders(cut.shape, tuple(tensor.shape))
    if not orders:
        other = f"parameter '{name}' is {list(tensor.shape)}; name another one in names="
        raise PlanError(f"'{cut.name}' is {list(cut.shape)}, but {other}")
    if len(orders) > 1 and cut.value is not None:
        orders = [
            order for order in orders if _is_equal(_arrange(cut.value, order, tensor), _to_array(tensor))
        ] or orders
    if len(orders) > 1 and name != cut.name:
        raise PlanError(
            f"'{cut.name}' is square: whether parameter '{name}' is transposed in it cannot be told; give model="
        )
    return _match(cut, name, orders[0])


def _match(cut: Cut, name: str, order: AxisOrder) -> Match:
    return Match(name, tuple(cut.kept[axis] if axis >= 0 else (0,) for axis in order))


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[AxisOrder]:
    """Return the possible axis orders of a parameter in a constant: unchanged up to axes of size 1, or transposed."""
    if shape == wanted:
        unchanged: AxisOrder | None = tuple(range(len(shape)))
    else:
        unchanged = _order_up_to_ones(shape, wanted)
    transposed = None
    if len(shape) == len(wanted) == 2 and shape[::-1] == wanted and 1 not in shape:
        transposed = (1, 0)
    return [order for order in (unchanged, transposed) if order is not None]


def _order_up_to_ones(shape: tuple[int, ...], wanted: tuple[int, ...]) -> AxisOrder | None:
    """Return the axis order if the shapes differ only by axes of size 1."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if [shape[axis] for axis in long] != [size for size in wanted if size > 1]:
        return None
    remaining = iter(long)
    return tuple(next(remaining) if size > 1 else -1 for size in wanted)


def _arrange(value: Array, order: AxisOrder, tensor: torch.Tensor) -> Array:
    """Transpose or reshape a constant to the shape of a parameter."""
    return value.transpose(order) if order == (1, 0) else value.reshape(tuple(tensor.shape))


def _to_array(tensor: torch.Tensor) -> Array:
    values = tensor.detach().cpu()
    return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)


def _is_equal(value: Array, wanted: Array) -> bool:
    return bool(np.array_equal(value, wanted.astype(value.dtype)))


def _match_by_values(
    module: nn.Module, cuts: list[Cut], taken: set[str], trace: ModuleTrace
) -> tuple[list[tuple[Cut, Match]], list[Cut]]:
    """Match constants with parameters that hold their values; also return the constants without one."""
    tensors = named_tensors(module)
    free = {name: tensor for name, tensor in tensors.items() if name not in taken | _folded_norm_tensors(module, trace)}
    folded = _folded_weights(module, free, trace)
    groups: dict[tuple[tuple[str, AxisOrder], ...], list[Cut]] = {}
    for cut in cuts:
        shared = {} if cut.is_uniform else tensors
        candidates = tuple(_candidates(cut, free, folded)) or tuple(_candidates(cut, shared, {}))
        candidates = candidates or tuple(_candidates(cut, free, {name: _to_array(free[name]) for name in free}))
        groups.setdefault(candidates, []).append(cut)
    pairs: list[tuple[Cut, Match]] = []
    missing: list[Cut] = []
    for candidates, alike in groups.items():
        chosen = candidates * len(alike) if len(candidates) == 1 else _candidates_by_call(module, candidates, trace)
        if len(chosen) == len(alike):
            pairs += [(cut, _match(cut, *one)) for cut, one in zip(alike, chosen, strict=True)]
        else:
            missing += alike
    return pairs, missing


def _candidates(
    cut: Cut, free: Mapping[str, torch.Tensor], folded: Mapping[str, Array]
) -> Iterable[tuple[str, AxisOrder]]:
    """Yield the parameters that hold the values of a constant, each with its axis order."""
    assert cut.value is not None
    for name, tensor in free.items():
        for order in _orders(cut.shape, tuple(tensor.shape)):
            value = _arrange(cut.value, order, tensor)
            if _is_equal(value, _to_array(tensor)) or (name in folded and _is_near(value, folded[name])):
                yield name, order
                break


def _is_near(value: Array, wanted: Array) -> bool:
    if not is_float(value) or not value.size:
        return False
    a, b = value.astype(np.float64), wanted.astype(np.float64)
    return bool(np.abs(a - b).max() <= FOLDING_TOLERANCE * np.abs(b).max())


def _folded_norm_tensors(module: nn.Module, trace: ModuleTrace) -> set[str]:
    """Return the tensors of BatchNormalizations that can be folded; those that were not have kept their names."""
    names = {inner: name for name, inner in module.named_modules()}
    norms = [norm for norm in trace.norm_sources if isinstance(norm, BATCH_NORM_MODULES)]
    return {f"{names[norm]}.{local}" for norm in norms for local in named_tensors(norm)}


def _folded_weights(module: nn.Module, free: Mapping[str, torch.Tensor], trace: ModuleTrace) -> dict[str, Array]:
    """Return the weights with the BatchNormalization behind them folded in."""
    names = {inner: name for name, inner in module.named_modules()}
    weights = {}
    for norm, sources in trace.norm_sources.items():
        if not isinstance(norm, BATCH_NORM_MODULES) or norm.running_var is None or len(sources) != 1:
            continue
        (source,) = sources
        name = f"{names[source]}.weight".lstrip(".")
        if name in free:
            scale = 1 / np.sqrt(_to_array(norm.running_var).astype(np.float64) + norm.eps)
            scale = scale if norm.weight is None else scale * _to_array(norm.weight)
            weights[name] = _scale_outputs(source, _to_array(free[name]), scale)
    return weights


def _scale_outputs(source: nn.Module, weight: Array, scale: Array) -> Array:
    """Scale a weight along its output channels."""
    if not isinstance(source, TRANSPOSED_CONVOLUTION_MODULES):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    scales = scale.reshape(source.groups, 1, -1, *[1] * (weight.ndim - 2))
    return (weight.reshape(source.groups, -1, *weight.shape[1:]) * scales).reshape(weight.shape)


def _candidates_by_call(
    module: nn.Module, candidates: Sequence[tuple[str, AxisOrder]], trace: ModuleTrace
) -> list[tuple[str, AxisOrder]]:
    """Return the candidate of each call of a module that owns one; a tensor with several names counts once."""
    tensors = named_tensors(module)
    once = {id(tensors[name]): (name, order) for name, order in reversed(candidates)}
    owned: dict[nn.Module, list[tuple[str, AxisOrder]]] = {}
    for name, order in once.values():
        owned.setdefault(module.get_submodule(name.rpartition(".")[0]), []).append((name, order))
    return [one for inner in trace.calls for one in owned.get(inner, [])]

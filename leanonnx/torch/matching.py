"""Which parameter of a module a constant of its export is.

1. Of the name that the user gives for it, or of its own name: exporters keep the names of what they leave as it is.
2. Of the same numbers, turned or not: they rename weights that they transpose or reshape.
3. Of the numbers that a weight has once the BatchNormalization behind it is folded in: they do that too.
4. Of the same numbers but for rounding: those that the model computes from constants (weight norm) are the weights of
   the module without the parametrisation.

Where several parameters hold the same numbers (as many untrained ones do), the nodes that read them are as many calls
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
from leanonnx.torch.cuts import Cut, Kept
from leanonnx.torch.modules import BATCH_NORMS, TRANSPOSED
from leanonnx.torch.running import ModuleTrace

FOLDED = 1e-4
"""Share of the largest weight that folding may be off by rounding."""
Order = tuple[int, ...]
"""For each axis of a parameter, that of the constant."""


@dataclass(frozen=True)
class Match:
    """A parameter by its name, and what survives on each of its axes."""

    name: str
    kept: tuple[Kept, ...]


@dataclass(frozen=True)
class Matches:
    """Constants, each with its parameter, and those without one."""

    found: tuple[tuple[Cut, Match], ...]
    missing: tuple[Cut, ...]


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, under each of their names."""
    found = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


def matched(module: nn.Module, cuts: Sequence[Cut], names: Mapping[str, str], trace: ModuleTrace | None) -> Matches:
    """Find the parameters of constants; by their numbers only where ``trace`` shows how the module ran.

    Raises:
        PlanError: ``names`` holds names that do not exist, or a name leads to another shape.
    """
    tensors = named_tensors(module)
    _check_names(names, {cut.name for cut in cuts}, tensors)
    found: list[tuple[Cut, Match]] = []
    missing: list[Cut] = []
    for cut in cuts:
        name = names.get(cut.name, cut.name)
        if name in tensors:
            found.append((cut, _placed(cut, name, tensors[name])))
        else:
            missing.append(cut)
    if trace is not None:
        more, missing = _by_numbers(module, missing, {match.name for _, match in found}, trace)
        found += more
    return Matches(tuple(found), tuple(missing))


def _check_names(names: Mapping[str, str], known: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> None:
    wrong = [f"constant '{name}'" for name in names if name not in known]
    wrong += [f"parameter '{name}'" for name in names.values() if name not in tensors]
    if wrong:
        raise PlanError(f"names: there is no {' and no '.join(wrong)}; give {{constant of the plan: parameter}}")


def _placed(cut: Cut, name: str, tensor: torch.Tensor) -> Match:
    """The parameter that a name leads to."""
    orders = _orders(cut.shape, tuple(tensor.shape))
    if not orders:
        other = f"parameter '{name}' is {list(tensor.shape)}; name another one in names="
        raise PlanError(f"'{cut.name}' is {list(cut.shape)}, but {other}")
    if len(orders) > 1 and cut.value is not None:
        orders = [order for order in orders if _equal(_turned(cut.value, order, tensor), _numbers(tensor))] or orders
    if len(orders) > 1 and name != cut.name:
        raise PlanError(
            f"'{cut.name}' is square: whether parameter '{name}' is transposed in it cannot be told; give model="
        )
    return _match(cut, name, orders[0])


def _match(cut: Cut, name: str, order: Order) -> Match:
    return Match(name, tuple(cut.kept[axis] if axis >= 0 else (0,) for axis in order))


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[Order]:
    """Ways in which a constant of one shape may hold a parameter of another: as it is, with axes of 1, transposed."""
    if shape == wanted:
        straight: Order | None = tuple(range(len(shape)))
    else:
        straight = _spread(shape, wanted)
    turned = None
    if len(shape) == len(wanted) == 2 and shape[::-1] == wanted and 1 not in shape:
        turned = (1, 0)
    return [order for order in (straight, turned) if order is not None]


def _spread(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Order | None:
    """The order where the shapes differ by axes of 1 only."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if [shape[axis] for axis in long] != [size for size in wanted if size > 1]:
        return None
    left = iter(long)
    return tuple(next(left) if size > 1 else -1 for size in wanted)


def _turned(value: Array, order: Order, tensor: torch.Tensor) -> Array:
    """A constant in the shape of a parameter."""
    return value.transpose(order) if order == (1, 0) else value.reshape(tuple(tensor.shape))


def _numbers(tensor: torch.Tensor) -> Array:
    found = tensor.detach().cpu()
    return np.asarray(found.float() if found.dtype == torch.bfloat16 else found)


def _equal(value: Array, wanted: Array) -> bool:
    return bool(np.array_equal(value, wanted.astype(value.dtype)))


def _by_numbers(
    module: nn.Module, cuts: list[Cut], taken: set[str], trace: ModuleTrace
) -> tuple[list[tuple[Cut, Match]], list[Cut]]:
    """Parameters that hold the numbers of constants, and constants for which there are none."""
    tensors = named_tensors(module)
    free = {name: tensor for name, tensor in tensors.items() if name not in taken | _folded_away(module, trace)}
    folded = _folded(module, free, trace)
    groups: dict[tuple[tuple[str, Order], ...], list[Cut]] = {}
    for cut in cuts:
        again = {} if cut.uniform else tensors
        candidates = tuple(_candidates(cut, free, folded)) or tuple(_candidates(cut, again, {}))
        candidates = candidates or tuple(_candidates(cut, free, {name: _numbers(free[name]) for name in free}))
        groups.setdefault(candidates, []).append(cut)
    found: list[tuple[Cut, Match]] = []
    missing: list[Cut] = []
    for candidates, alike in groups.items():
        chosen = candidates * len(alike) if len(candidates) == 1 else _in_turn(module, candidates, trace)
        if len(chosen) == len(alike):
            found += [(cut, _match(cut, *one)) for cut, one in zip(alike, chosen, strict=True)]
        else:
            missing += alike
    return found, missing


def _candidates(cut: Cut, free: Mapping[str, torch.Tensor], folded: Mapping[str, Array]) -> Iterable[tuple[str, Order]]:
    """Parameters that hold the numbers of a constant, and in what order of axes."""
    assert cut.value is not None
    for name, tensor in free.items():
        for order in _orders(cut.shape, tuple(tensor.shape)):
            value = _turned(cut.value, order, tensor)
            if _equal(value, _numbers(tensor)) or (name in folded and _near(value, folded[name])):
                yield name, order
                break


def _near(value: Array, wanted: Array) -> bool:
    if not is_float(value) or not value.size:
        return False
    a, b = value.astype(np.float64), wanted.astype(np.float64)
    return bool(np.abs(a - b).max() <= FOLDED * np.abs(b).max())


def _folded_away(module: nn.Module, trace: ModuleTrace) -> set[str]:
    """Tensors of BatchNormalizations that can be folded; where they were not, they have kept their names."""
    names = {inner: name for name, inner in module.named_modules()}
    norms = [norm for norm in trace.behind if isinstance(norm, BATCH_NORMS)]
    return {f"{names[norm]}.{local}" for norm in norms for local in named_tensors(norm)}


def _folded(module: nn.Module, free: Mapping[str, torch.Tensor], trace: ModuleTrace) -> dict[str, Array]:
    """Weights with the BatchNormalization behind them folded in."""
    names = {inner: name for name, inner in module.named_modules()}
    found = {}
    for norm, sources in trace.behind.items():
        if not isinstance(norm, BATCH_NORMS) or norm.running_var is None or len(sources) != 1:
            continue
        (source,) = sources
        name = f"{names[source]}.weight".lstrip(".")
        if name in free:
            scale = 1 / np.sqrt(_numbers(norm.running_var).astype(np.float64) + norm.eps)
            scale = scale if norm.weight is None else scale * _numbers(norm.weight)
            found[name] = _scaled(source, _numbers(free[name]), scale)
    return found


def _scaled(source: nn.Module, weight: Array, scale: Array) -> Array:
    """A weight whose outputs are scaled."""
    if not isinstance(source, TRANSPOSED):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    grouped = scale.reshape(source.groups, 1, -1, *[1] * (weight.ndim - 2))
    return (weight.reshape(source.groups, -1, *weight.shape[1:]) * grouped).reshape(weight.shape)


def _in_turn(module: nn.Module, candidates: Sequence[tuple[str, Order]], trace: ModuleTrace) -> list[tuple[str, Order]]:
    """For each call of a module that owns a candidate, that one; a tensor with several names counts once."""
    tensors = named_tensors(module)
    once = {id(tensors[name]): (name, order) for name, order in reversed(candidates)}
    owned: dict[nn.Module, list[tuple[str, Order]]] = {}
    for name, order in once.values():
        owned.setdefault(module.get_submodule(name.rpartition(".")[0]), []).append((name, order))
    return [one for inner in trace.calls for one in owned.get(inner, [])]

"""Tied tensor axes and size attributes of torch's modules that have channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from leanonnx.errors import PlanError
from leanonnx.torch.cuts import KeptIndices

TensorAxis = tuple[str, int]
"""Name of a tensor of a module, and one of its axes."""
KnownIndices = Mapping[TensorAxis, KeptIndices]
"""Kept indices by tensor axis of a module."""
Attributes = dict[str, Any]
CONVOLUTION_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTION_MODULES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORM_MODULES = (*BATCH_NORM_MODULES, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CHANNEL_AXES = (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))


@dataclass(frozen=True)
class ModuleKind:
    """Description of a type of modules; axes without known kept indices are kept whole.

    Attributes:
        tied_axes: groups of axes that keep the same indices.
        new_attributes: computes the new attributes of a module from the kept indices.
        infer_indices: computes kept indices of further axes.
    """

    tied_axes: tuple[tuple[TensorAxis, ...], ...]
    new_attributes: Callable[[Any, KnownIndices], Attributes]
    infer_indices: Callable[[Any, KnownIndices], KnownIndices] = lambda module, known: {}


def module_kind(module: nn.Module) -> ModuleKind | None:
    """Return the kind of a module; None for unknown types."""
    return next((kind for types, kind in MODULE_KINDS if isinstance(module, types)), None)


def is_user_class(module: nn.Module) -> bool:
    """Return True if a module's class is the user's, not one of torch's."""
    return not type(module).__module__.startswith("torch.")


def kept_conv_groups(kept: KeptIndices, size: int, groups: int) -> list[int]:
    """Return the conv groups of an axis of ``size`` channels that keep any channel.

    Raises:
        PlanError: the conv groups keep different numbers of channels.
    """
    counts = Counter(place // (size // groups) for place in kept)
    if len(set(counts.values())) != 1:
        raise PlanError(f"its {groups} groups keep different numbers of channels; pin it in the plan")
    return sorted(counts)


def _conv(module: Any, known: KnownIndices) -> Attributes:
    rows, columns = (known.get(("weight", axis), tuple(range(module.weight.shape[axis]))) for axis in (0, 1))
    groups = len(kept_conv_groups(rows, module.weight.shape[0], module.groups))
    first, second = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
    return {first: len(rows), second: len(columns) * groups, "groups": groups}


def _transposed_bias(module: Any, known: KnownIndices) -> KnownIndices:
    """Infer the kept outputs of a transposed convolution, one conv group after another."""
    rows, columns = (known.get(("weight", axis), tuple(range(module.weight.shape[axis]))) for axis in (0, 1))
    groups = kept_conv_groups(rows, module.weight.shape[0], module.groups)
    width = module.weight.shape[1]
    return {("bias", 0): tuple(group * width + column for group in groups for column in columns)}


def _linear(module: nn.Linear, known: KnownIndices) -> Attributes:
    return _sizes(known, out_features=("weight", 0), in_features=("weight", 1))


def _embedding(module: nn.Embedding, known: KnownIndices) -> Attributes:
    return _sizes(known, num_embeddings=("weight", 0), embedding_dim=("weight", 1))


def _prelu(module: nn.PReLU, known: KnownIndices) -> Attributes:
    return _sizes(known, num_parameters=("weight", 0))


def _norm(module: nn.Module, known: KnownIndices) -> Attributes:
    return _sizes(known, num_features=("weight", 0))


def _group_norm(module: nn.GroupNorm, known: KnownIndices) -> Attributes:
    kept = known.get(("weight", 0), tuple(range(module.num_channels)))
    groups = kept_conv_groups(kept, module.num_channels, module.num_groups)
    return {"num_channels": len(kept), "num_groups": len(groups)}


def _layer_norm(module: nn.LayerNorm, known: KnownIndices) -> Attributes:
    sizes = enumerate(module.normalized_shape)
    return {"normalized_shape": tuple(len(known.get(("weight", axis), range(size))) for axis, size in sizes)}


def _sizes(known: KnownIndices, **axes: TensorAxis) -> Attributes:
    return {name: len(known[axis]) for name, axis in axes.items() if axis in known}


def _tie_axes(*names: str, axes: int = 4) -> tuple[tuple[TensorAxis, ...], ...]:
    """Tie each of the first ``axes`` axes across the named tensors."""
    return tuple(tuple((name, axis) for name in names) for axis in range(axes))


MODULE_KINDS: tuple[tuple[Any, ModuleKind], ...] = (
    (TRANSPOSED_CONVOLUTION_MODULES, ModuleKind(_tie_axes("weight", axes=2), _conv, _transposed_bias)),
    (CONVOLUTION_MODULES, ModuleKind(((("weight", 0), ("bias", 0)), (("weight", 1),)), _conv)),
    (nn.Linear, ModuleKind(((("weight", 0), ("bias", 0)), (("weight", 1),)), _linear)),
    (NORM_MODULES, ModuleKind((CHANNEL_AXES,), _norm)),
    (nn.GroupNorm, ModuleKind(_tie_axes("weight", "bias", axes=1), _group_norm)),
    ((nn.LayerNorm, nn.RMSNorm), ModuleKind(_tie_axes("weight", "bias"), _layer_norm)),
    (nn.PReLU, ModuleKind(_tie_axes("weight", axes=1), _prelu)),
    ((nn.Embedding, nn.EmbeddingBag), ModuleKind(_tie_axes("weight", axes=2), _embedding)),
)

"""The keep set that remains when channels of the caller's own choice are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np

from leanonnx.analysis.closure import Closure
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.formatting import count_text
from leanonnx.numeric.arrays import Ints
from leanonnx.numeric.channel_ids import Mask, varied_axes
from leanonnx.spelling import verb


def without_channels(dag: ChannelDag, unwanted: Mapping[str, Sequence[int]]) -> Mask:
    """Keep mask [channels] without these channels, what is tied to them, and what then feeds or reads nothing.

    Args:
        dag: the channels of the model.
        unwanted: indices of channels by tensor, or by node for the outputs of the node.

    Raises:
        OptionError: an unknown name, an index out of range or given twice, a channel that is pinned or tied to a pinned
            one, or a tensor that would lose all its channels.
    """
    keep = np.ones(int(dag.groups.max()) + 1, bool)
    for name, indices in unwanted.items():
        tensor = _tensor_of(dag, name)
        for index, ids in _chosen_channels(dag, name, tensor, indices):
            _check_free(dag, f"channel {index} of '{name}'", ids)
            keep[dag.groups[ids]] = False
    closure = Closure(dag, dag.groups)
    alive = closure.alive_channels(keep)
    for tensor, ids in dag.channel_ids.items():
        if not alive[ids].any() and not closure.removable[ids].all():
            raise OptionError(f"no channel of tensor '{tensor}' would remain; keep at least one")
    for pin in dag.pins:
        if not alive[pin.channel_ids].all():
            raise OptionError(f"channels of '{pin.tensor}' would be removed, but are pinned: {pin.reason}")
    return alive


def _tensor_of(dag: ChannelDag, name: str) -> str:
    """The tensor of this name, or the first output with channels of the node of this name."""
    outputs = (output for node in dag.model.proto.graph.node if name and node.name == name for output in node.output)
    for tensor in (name, *outputs):
        if tensor in dag.channel_ids:
            return tensor
    raise OptionError(f"'{name}': no tensor and no node of that name carries channels; see `{verb('inspect')}`")


def _chosen_channels(dag: ChannelDag, name: str, tensor: str, indices: Sequence[int]) -> list[tuple[int, Ints]]:
    """Channel ids of each index along the channel axis of a tensor."""
    ids = dag.channel_ids[tensor]
    axes = varied_axes(ids)
    rows = np.moveaxis(ids, axes[0], 0) if axes else ids.reshape(1, -1)
    pairs: list[tuple[int, Ints]] = []
    for index in indices:
        if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= index < len(rows):
            has = f"'{name}' has {count_text(len(rows), 'channel')}"
            raise OptionError(f"channel {index} of '{name}': {has}; give indices from 0 to {len(rows) - 1}")
        if any(index == other for other, _ in pairs):
            raise OptionError(f"channel {index} of '{name}' is given twice; give each index once")
        pairs.append((int(index), np.unique(rows[index])))
    return pairs


def _check_free(dag: ChannelDag, title: str, ids: Ints) -> None:
    """Refuse channels that may not be removed, or are tied to some that may not."""
    if 0 in ids:
        raise OptionError(f"{title} may not be removed: it holds values that belong to no channel")
    for pin in dag.pins:
        if np.intersect1d(ids, pin.channel_ids).size:
            raise OptionError(f"{title} may not be removed: {pin.reason} ({pin.advice})")
        if np.isin(dag.groups[pin.channel_ids], dag.groups[ids]).any():
            where = f"is tied to a channel of '{pin.tensor}'"
            raise OptionError(f"{title} {where}, which may not be removed: {pin.reason} ({pin.advice})")

"""Samples from Python: iterables of arrays, dicts or pairs, a torch DataLoader, onnxruntime's CalibrationDataReader.

An iterable is read once, to its end, and kept in memory. What it gives is a sample or a batch of them: an array of the
input, a dict by graph input, or a pair of the input and its labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanonnx.errors import DataError
from leanonnx.numeric.arrays import Array

LABELS = "labels"
"""Name of the labels that come in pairs with their inputs."""
PAIR_SIZE = 2
"""Items of an input with its labels."""


@dataclass(frozen=True)
class Pieces:
    """Arrays that an iterable gave one by one: samples, or batches of them."""

    arrays: tuple[Array, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.arrays[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of pieces."""
        return (len(self.arrays),)


def as_array(value: Any) -> Array:
    """An array of anything that holds one; a tensor of torch may be on a GPU, or need gradients."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def as_arrays(samples: Any, name: str) -> Mapping[str, Any]:
    """Samples as arrays by graph input.

    Args:
        samples: arrays by graph input, one array, an iterable of items, or an object with ``get_next``.
        name: what to call an array without a name.

    Raises:
        DataError: an iterable is empty, or its items differ in form.
    """
    if isinstance(samples, Mapping):
        return {key: value if isinstance(value, Pieces) else as_array(value) for key, value in samples.items()}
    if hasattr(samples, "__array__"):
        return {name: as_array(samples)}
    items = list(_read(samples)) if _is_iterable(samples) else None
    if items is None:
        return {name: np.asarray(samples)}
    if not items:
        raise DataError(f"{name}: the iterable gives no sample; a generator can be read once, so make a new one")
    named = [_named(item, name) for item in items]
    if named[0] is None:  # nested lists of numbers
        return {name: np.asarray(items)}
    keys = {tuple(sorted(each or ())) for each in named}
    if len(keys) > 1:
        texts = " and ".join(sorted(str(list(each)) for each in keys))
        raise DataError(f"{name}: the items of the iterable differ: {texts}; give each the same arrays")
    return {key: Pieces(tuple(each[key] for each in named if each)) for key in keys.pop()}


def _is_iterable(samples: Any) -> bool:
    """True for iterables and readers, and for what is indexed from 0 on, as a torch Dataset is."""
    return isinstance(samples, Iterable) or hasattr(samples, "get_next") or hasattr(samples, "__getitem__")


def _read(samples: Any) -> Iterator[Any]:
    """The items of an iterable, or of a reader with ``get_next``, which gives None at its end."""
    if not hasattr(samples, "get_next"):
        yield from samples
        return
    while (item := samples.get_next()) is not None:
        yield item


def _named(item: Any, name: str) -> dict[str, Array] | None:
    """The arrays of an item by name; None for numbers and lists of them."""
    if isinstance(item, Mapping):
        return {str(key): as_array(value) for key, value in item.items()}
    if hasattr(item, "__array__") and not np.isscalar(item):
        return {name: as_array(item)}
    if not (isinstance(item, Sequence) and item and hasattr(item[0], "__array__")):
        return None
    if len(item) > PAIR_SIZE:
        raise DataError(
            f"{name}: an item of the iterable holds {len(item)} arrays; give dicts of arrays by graph input, or pairs "
            "of the only input and its labels"
        )
    return {key: as_array(value) for key, value in zip((name, LABELS), item, strict=False)}


def join_pieces(arrays: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Array]:
    """Arrays [samples, ...] of those that came in pieces.

    The pieces are batches if each has the rank of its input, and those of one item hold the same number of samples;
    otherwise each is one sample.

    Args:
        arrays: by name, some of them in pieces.
        ranks: the rank of each graph input.

    Raises:
        DataError: samples differ in shape.
    """
    pieces = {name: array.arrays for name, array in arrays.items() if isinstance(array, Pieces)}
    fed = {name: pieces[name] for name in pieces if name in ranks}
    if not fed and len(ranks) == 1:  # the only array fits the only input under any name
        fed = {next(iter(ranks)): parts for name, parts in pieces.items() if name != LABELS}
    batched = all(part.ndim == ranks[name] for name, parts in fed.items() for part in parts) and all(
        len({part.shape[:1] for part in item}) == 1 for item in zip(*fed.values(), strict=False)
    )
    return {
        name: _join(name, pieces[name], batched) if name in pieces else np.asarray(array)
        for name, array in arrays.items()
    }


def _join(name: str, parts: tuple[Array, ...], batched: bool) -> Array:
    """One array of its parts."""
    try:
        return np.concatenate([np.atleast_1d(part) for part in parts]) if batched else np.stack(parts)
    except ValueError as error:
        shapes = sorted({part.shape for part in parts})[:PAIR_SIZE]
        raise DataError(
            f"the samples of '{name}' differ in shape: {' and '.join(str(list(shape)) for shape in shapes)}; give all "
            "of them one shape"
        ) from error

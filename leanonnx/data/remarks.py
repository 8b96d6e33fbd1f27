"""Remarks on data that are read without error, but perhaps not as they are meant."""

from __future__ import annotations

from itertools import islice

import numpy as np

from leanonnx.data.files import LABEL_NAMES, MemoryArray
from leanonnx.data.npz import NpzArray
from leanonnx.data.samples import Dataset
from leanonnx.numeric.arrays import Array
from leanonnx.spelling import option_list

LOOKED_AT = 8
"""Number of samples that are looked at."""
MAX_PIXEL = 255
MAX_UNUSED_NAMED = 5
"""Largest number of arrays that are named."""


def unused_remark(data: Dataset) -> str | None:
    """A remark on arrays that are neither inputs nor labels; None if there are none."""
    names = dict.fromkeys(f"'{name}'" for file in data.files for name in file.unused)
    if not names:
        return None
    shown, labels = ", ".join(list(names)[:MAX_UNUSED_NAMED]), " or ".join(f"'{name}'" for name in LABEL_NAMES)
    return (
        f"arrays of the data are not used: {shown}; name labels {labels}, and inputs as the model does"
        if data.label_name is None
        else f"arrays of the data are not used: {shown}; the model has no such inputs"
    )


def pixel_remark(data: Dataset) -> str | None:
    """A remark on whole numbers up to 255 in an input of floats, as pixels are before scaling; None for others."""
    arrays = data.files[0].arrays
    floats = {s.name for s in data.inputs if s.dtype.kind == "f" and isinstance(arrays[s.name], NpzArray | MemoryArray)}
    feeds = list(islice(data.only(floats).feeds(1), LOOKED_AT)) if floats else []
    for name in sorted(floats):
        if _is_raw(np.concatenate([feed[name].reshape(-1) for feed in feeds])):
            return (
                f"input '{name}' takes floats, and the data hold whole numbers up to {MAX_PIXEL}, as pixels are: right "
                "if the network scales them itself; otherwise scale them as in training, or give a folder of images "
                f"with {option_list('mean', 'std', 'scale')}"
            )
    return None


def _is_raw(values: Array) -> bool:
    """True if numbers look like pixels that were not scaled."""
    numbers = values.astype(np.float64)
    return bool(numbers.size and 1 < numbers.max() <= MAX_PIXEL and numbers.min() >= 0 and not np.any(numbers % 1))

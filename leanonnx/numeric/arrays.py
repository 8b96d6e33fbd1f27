"""Names for types of arrays; their shapes stand in docstrings, as [rows, columns]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

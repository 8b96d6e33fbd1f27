"""The table of operators: (domain, operator) → torch function.  A value, passed as an argument."""

from __future__ import annotations

from leanonnx.tune.call import Operators
from leanonnx.tune.indexing import INDEXING
from leanonnx.tune.linear import LINEAR
from leanonnx.tune.movement import MOVEMENT
from leanonnx.tune.normalization import NORMALIZATION
from leanonnx.tune.pointwise import POINTWISE
from leanonnx.tune.recurrent import RECURRENT
from leanonnx.tune.reduction import REDUCTION
from leanonnx.tune.resize import RESIZE
from leanonnx.tune.spatial import SPATIAL

OPERATORS: Operators = {
    **POINTWISE,
    **LINEAR,
    **NORMALIZATION,
    **MOVEMENT,
    **INDEXING,
    **REDUCTION,
    **SPATIAL,
    **RESIZE,
    **RECURRENT,
}

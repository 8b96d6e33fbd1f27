"""The table of operators: (domain, operator) → torch function.  A value, passed as an argument."""

from __future__ import annotations

from leanonnx.finetuning.operators.call import Operators
from leanonnx.finetuning.operators.indexing import INDEXING
from leanonnx.finetuning.operators.linear import LINEAR
from leanonnx.finetuning.operators.movement import MOVEMENT
from leanonnx.finetuning.operators.normalization import NORMALIZATION
from leanonnx.finetuning.operators.pointwise import POINTWISE
from leanonnx.finetuning.operators.recurrent import RECURRENT
from leanonnx.finetuning.operators.reduction import REDUCTION
from leanonnx.finetuning.operators.resize import RESIZE
from leanonnx.finetuning.operators.spatial import SPATIAL

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

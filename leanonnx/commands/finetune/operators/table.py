"""The table of operators: (domain, operator) → torch function.  A value, passed as an argument."""

from __future__ import annotations

from leanonnx.commands.finetune.operators.call import Operators
from leanonnx.commands.finetune.operators.indexing import INDEXING
from leanonnx.commands.finetune.operators.linear import LINEAR
from leanonnx.commands.finetune.operators.movement import MOVEMENT
from leanonnx.commands.finetune.operators.normalization import NORMALIZATION
from leanonnx.commands.finetune.operators.pointwise import POINTWISE
from leanonnx.commands.finetune.operators.recurrent import RECURRENT
from leanonnx.commands.finetune.operators.reduction import REDUCTION
from leanonnx.commands.finetune.operators.resize import RESIZE
from leanonnx.commands.finetune.operators.spatial import SPATIAL

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

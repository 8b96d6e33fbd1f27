"""Table of torch functions by (domain, operator)."""

from __future__ import annotations

from leanonnx.commands.finetune.operators.call import Operators
from leanonnx.commands.finetune.operators.indexing import INDEXING_OPERATORS
from leanonnx.commands.finetune.operators.linear import LINEAR_OPERATORS
from leanonnx.commands.finetune.operators.movement import MOVEMENT_OPERATORS
from leanonnx.commands.finetune.operators.normalization import NORMALIZATION_OPERATORS
from leanonnx.commands.finetune.operators.pointwise import TORCH_POINTWISE
from leanonnx.commands.finetune.operators.recurrent import RECURRENT_OPERATORS
from leanonnx.commands.finetune.operators.reduction import REDUCTION_OPERATORS
from leanonnx.commands.finetune.operators.resize import RESIZE_OPERATORS
from leanonnx.commands.finetune.operators.spatial import SPATIAL_OPERATORS
from leanonnx.commands.finetune.operators.transforms import TRANSFORM_OPERATORS

TORCH_OPERATORS: Operators = {
    **TORCH_POINTWISE,
    **LINEAR_OPERATORS,
    **NORMALIZATION_OPERATORS,
    **MOVEMENT_OPERATORS,
    **INDEXING_OPERATORS,
    **REDUCTION_OPERATORS,
    **SPATIAL_OPERATORS,
    **RESIZE_OPERATORS,
    **RECURRENT_OPERATORS,
    **TRANSFORM_OPERATORS,
}

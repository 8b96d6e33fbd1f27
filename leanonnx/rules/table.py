"""Rule table: (domain, operator) → rule.  A value, not a registry: combine it with your own rules and pass it on.

analyse(model, rules={**DEFAULT_RULES, ("com.acme", "FusedConv"): my_rule})
"""

from __future__ import annotations

from collections.abc import Mapping

from leanonnx.operators.facts import Trait
from leanonnx.operators.table import OPERATORS
from leanonnx.rules import (
    assembly,
    attention,
    convolution,
    indexing,
    linear,
    movement,
    normalization,
    pointwise,
    products,
    quantization,
    recurrent,
    reduction,
    spatial,
    transforms,
    windows,
)
from leanonnx.rules.call import Rule

Rules = Mapping[tuple[str, str], Rule]

DEFAULT_RULES: Rules = {
    **convolution.CONVOLUTION_RULES,
    **linear.LINEAR_RULES,
    **products.PRODUCT_RULES,
    **recurrent.RECURRENT_RULES,
    **normalization.NORMALIZATION_RULES,
    **pointwise.POINTWISE_RULES,
    **assembly.ASSEMBLY_RULES,
    **movement.MOVEMENT_RULES,
    **windows.WINDOW_RULES,
    **indexing.INDEXING_RULES,
    **spatial.SPATIAL_RULES,
    **reduction.REDUCTION_RULES,
    **transforms.TRANSFORM_RULES,
    **quantization.QUANTIZATION_RULES,
    **attention.ATTENTION_RULES,
}
COUNTED_WEIGHT_SLOTS: Mapping[tuple[str, str], int] = {
    key: facts.weight for key, facts in OPERATORS.items() if Trait.KERNELS in facts.traits and facts.weight is not None
}
"""Weight slot of each operator whose kernels are counted, pruned or not."""

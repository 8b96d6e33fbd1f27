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
    windows,
)
from leanonnx.rules.call import Rule

Rules = Mapping[tuple[str, str], Rule]

DEFAULT_RULES: Rules = {
    **convolution.RULES,
    **linear.RULES,
    **products.RULES,
    **recurrent.RULES,
    **normalization.RULES,
    **pointwise.RULES,
    **assembly.RULES,
    **movement.RULES,
    **windows.RULES,
    **indexing.RULES,
    **spatial.RULES,
    **reduction.RULES,
    **quantization.RULES,
    **attention.RULES,
}
COUNTED: Mapping[tuple[str, str], int] = {
    key: facts.weight for key, facts in OPERATORS.items() if Trait.KERNELS in facts.traits and facts.weight is not None
}
"""Weight slot of each operator whose kernels are counted, pruned or not."""

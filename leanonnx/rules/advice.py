"""Advice for the user that accompanies the reason of a pin."""

from __future__ import annotations

from leanonnx.spelling import option

NO_EXACT_FORM = "no exact form is known; other layers can lose more"
FIXED_INTERFACE = "nothing: inputs and outputs keep their shapes"
FOLD_CONSTANTS = "fold constants first (onnxruntime saves the folded model at optimisation level 'basic')"
MAKE_CONSTANT = "export it as a constant (freeze it, or fix the input sizes)"
EXPORT_AGAIN = "export the model again, with fixed input sizes"
COMPRESS_FLOAT = "compress the float model first and quantise the result"
AVOID_CONTROL_FLOW = "export without control flow, or give it values that carry no channels"
SAVE_BEFORE_LAYOUT = (
    "this is onnxruntime's layout for one machine: save the model at level 'basic' or 'extended' instead"
)
PRUNE_BESIDE_STREAM = (
    "no exact form exists: its statistics cover all channels; prune the layers beside the residual stream"
)


def write_rule() -> str:
    """Advice for an operator that no rule covers."""
    return f"write a rule for it ({option('rules')}, docs/operators.md)"


def freeze() -> str:
    """Advice for an initializer that a caller may override."""
    return f"add {option('freeze', True)}, if nobody overrides it"


def for_fixed_sizes(text: str) -> str:
    """Advice for a model whose input sizes are all fixed, without the hint to fix them."""
    if text == MAKE_CONSTANT:
        return "export it as a constant (freeze it)"
    return f"export this part in another form, or {write_rule()}" if text == EXPORT_AGAIN else text

"""Advice for the user that accompanies the reason of a pin."""

NONE = "no exact form is known; other layers can lose more"
INTERFACE = "nothing: inputs and outputs keep their shapes"
RULE = "write a rule for it (--rules, docs/operators.md)"
FOLD = "fold constants first (onnxruntime saves the folded model at optimisation level 'basic')"
CONSTANT = "export it as a constant (freeze it, or fix the input sizes)"
EXPORT = "export the model again, with fixed input sizes"
FLOAT = "compress the float model first and quantise the result"
INLINE = "export without control flow, or give it values that carry no channels"
LAYOUT = "this is onnxruntime's layout for one machine: save the model at level 'basic' or 'extended' instead"
STREAM = "no exact form exists: its statistics cover all channels; prune the layers beside the residual stream"
FIXED = {
    CONSTANT: "export it as a constant (freeze it)",
    EXPORT: "export this part in another form, or write a rule for it (--rules, docs/operators.md)",
}
"""Replacements of advice for models whose sizes are all fixed."""
FREEZE = "add --freeze, if nobody overrides it"

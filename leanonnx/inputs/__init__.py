"""Generated inputs of a model: random or synthetic."""

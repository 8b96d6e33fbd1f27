"""Compare a new model with the one that it is to replace, gate by gate."""

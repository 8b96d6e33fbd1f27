"""A new model held against the one it is to replace, gate by gate."""

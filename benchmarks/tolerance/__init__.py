"""A tolerance as the target, and the same by hand."""

"""Lossless reduction: remove what contributes nothing to the outputs."""

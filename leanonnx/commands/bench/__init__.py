"""Latency of models: which inputs, in which settings, and what came of it."""

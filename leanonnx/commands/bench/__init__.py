"""Measure the latency of models."""

"""Latency on an NVIDIA GPU of the benchmark networks before and after compression."""

"""Computation in 8-bit integers: ranges of activations, quantised weights, layers that stay float, and the proof."""

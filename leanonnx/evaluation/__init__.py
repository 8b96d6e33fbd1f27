"""Accuracy metrics: deviation of a compressed model from its original, and scores on labels."""

"""Accuracy metrics: how far a compressed model is from its original."""

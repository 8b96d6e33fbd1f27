"""Inputs made for a model: random or synthetic."""

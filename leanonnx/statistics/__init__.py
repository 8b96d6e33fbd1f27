"""Moments of activations: measured on data, or propagated through the network without data."""

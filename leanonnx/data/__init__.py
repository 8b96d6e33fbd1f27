"""Samples for a model from files, arrays or images, read on demand."""

"""Samples for a model: files, arrays or images, read as needed."""

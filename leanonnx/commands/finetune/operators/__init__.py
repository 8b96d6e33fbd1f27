"""Torch implementations of the ONNX operators, a file per family, joined in ``table``."""

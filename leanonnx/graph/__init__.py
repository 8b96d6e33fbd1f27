"""ONNX files: read, checked, cleaned up, written."""

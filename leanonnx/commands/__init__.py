"""The commands of leanonnx, a package each."""

"""Coverage-guided fuzzing of everything that leanonnx reads."""

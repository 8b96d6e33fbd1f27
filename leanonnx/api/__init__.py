"""leanonnx in Python: the verbs as functions, and what they take and give back."""

"""The proof that a compressed model equals the original with its removed channels masked."""

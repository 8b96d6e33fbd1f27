"""8-bit integers of leanonnx beside those of other quantisers, with and without pruning."""

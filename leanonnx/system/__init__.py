"""The machine that leanonnx runs on: cores, memory, processes, time and output files."""

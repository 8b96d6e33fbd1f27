"""The computer that leanonnx runs on: cores, memory, processes, time, files to be written."""

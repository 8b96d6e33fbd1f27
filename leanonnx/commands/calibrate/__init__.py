"""Measure the hardware table of this machine, validate it and store it."""

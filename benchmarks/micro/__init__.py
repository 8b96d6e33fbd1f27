"""Seconds of each step of a compression, for comparing one commit with the next."""

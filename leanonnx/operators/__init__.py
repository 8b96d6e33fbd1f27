"""Operators: the facts about each that several rooms need."""

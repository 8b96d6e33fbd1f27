"""Channels alone against channels and whole branches, at equal budgets."""

"""Recovery: update the remaining weights to compensate for removed channels."""

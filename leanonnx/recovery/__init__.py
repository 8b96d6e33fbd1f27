"""Recovery: the surviving weights are changed to make up for what was removed."""

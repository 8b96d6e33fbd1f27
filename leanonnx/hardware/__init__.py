"""Cost tables of hardware targets."""

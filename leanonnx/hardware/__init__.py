"""Cost tables of hardware."""

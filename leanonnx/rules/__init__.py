"""What each operator does to channels: one file per operator family, joined in ``table``."""

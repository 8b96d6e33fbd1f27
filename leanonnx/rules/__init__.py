"""Rules that propagate channels through operators: one file per operator family, combined in ``table``."""

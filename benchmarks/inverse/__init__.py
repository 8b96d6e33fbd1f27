"""Inverse problems: small reconstruction networks, pruned, recovered and fine-tuned; see ``__main__``."""

"""What each operator computes, in torch: a file per family, joined in ``table``."""

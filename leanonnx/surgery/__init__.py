"""Keep set → patch → model, and the plan that tells of it."""

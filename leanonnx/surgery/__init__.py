"""Surgery: keep set → patch → model, and the plan that records it."""

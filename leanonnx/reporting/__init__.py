"""Results as JSON data and terminal tables."""

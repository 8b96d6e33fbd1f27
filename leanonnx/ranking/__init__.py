"""Channel importance: kernel gains, activation statistics, and the criteria built on them."""

"""Which channels are worth keeping: gains of kernels, statistics of activations, and the criteria that use them."""

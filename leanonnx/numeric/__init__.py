"""Pure numpy and scipy: labels, norms, chains, elimination, regression, intervals."""

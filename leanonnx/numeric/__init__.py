"""Pure numpy and scipy: channel ids, norms, chains, elimination, regression, intervals."""

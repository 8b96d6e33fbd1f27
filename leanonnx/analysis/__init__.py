"""Channel DAG of a model from graph and rules; cost and closure of keep sets."""

"""The model run on channel labels: graph + rules → channel DAG; what a keep set costs in it, what follows from one."""

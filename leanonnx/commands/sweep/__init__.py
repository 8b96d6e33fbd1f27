"""Many compressions of the same models: the trade-off curve, made in parallel, measured one by one."""

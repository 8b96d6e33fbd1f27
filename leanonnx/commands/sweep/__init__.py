"""Trade-off curves: many compressions of the same models, made in parallel and measured one by one."""

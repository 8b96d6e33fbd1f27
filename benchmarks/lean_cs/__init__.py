"""The experiment of the LEAN paper: a mixed-scale dense network on circles and squares, pruned and retrained."""

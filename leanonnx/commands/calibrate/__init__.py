"""The table of the machine at hand: measured from probes, tried on networks, stored."""

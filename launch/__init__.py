"""Starts runs: on this machine, under torchrun, or through Slurm. Nothing in `pipeline` knows this package."""

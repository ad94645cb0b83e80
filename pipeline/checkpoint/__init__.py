"""Generations of the whole training state: whole or absent, verified on load, readable at any world size."""

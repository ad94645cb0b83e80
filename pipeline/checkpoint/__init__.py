"""Generations of the whole training state, whole or absent and readable at any world size; and the exported model."""

"""Tessera: text-to-image models from nothing, on anything from a laptop CPU to a thousand GPUs."""

__version__ = "0.1.0"

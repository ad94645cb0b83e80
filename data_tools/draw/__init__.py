"""Captioned pictures made on the spot, for recipes and tests that need no download."""

"""Meters of quality, each exact over ranks, and the stamp that says how a figure was measured."""

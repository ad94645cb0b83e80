"""Preflight: what this machine lacks for a run, each finding with its remedy."""

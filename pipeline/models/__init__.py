"""The networks, and the exported folder that carries their weights."""

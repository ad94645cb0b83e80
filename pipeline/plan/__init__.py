"""What a run will need: memory, time, storage and cost, from its config alone. Used by `tessera plan`."""

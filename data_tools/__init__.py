"""Preparing data: draw, shard, check, look. Reads and writes the shard contract of `pipeline.data`; trains nothing."""

"""Plain WebDataset tars read by index: the shard contract, the keyed order, ranged reads, pixels, the loader."""

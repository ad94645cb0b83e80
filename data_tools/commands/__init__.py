"""The commands of `tessera-data`: each a module with `configure(parser)` and `run(args)`."""

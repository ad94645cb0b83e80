"""One module for each word after `tessera`: `configure(parser)` declares its arguments, `run(args)` does the work."""

"""The console program `tessera-data`: one line for each command, whose module is imported only when it is chosen."""

import sys

from pipeline.command_line import run_program

ABOUT = "Turn pictures with captions into WebDataset shards, check them and look at them."
COMMANDS = {
    "draw": "make captioned pictures on the spot: coloured shapes, or emoji",
    "shard": "turn a folder, table, list or tars of pictures with captions into shards",
    "index": "index WebDataset tars of foreign origin, so that they can be trained on",
    "validate": "check every byte, picture and caption of a dataset, and repair it",
    "report": "one HTML page about a dataset: counts, failures, sizes, words, pictures",
    "mask": "choose which samples count: filters, duplicates, opt-outs",
    "buckets": "sort pictures into shapes, for training on batches of several aspect ratios",
    "verify-epoch": "prove that a run trained on each sample exactly once an epoch",
    "precompute": "encode pictures once: latents in shards, stamped with their autoencoder",
}


def main() -> int:
    """Entry point of the console script."""
    return run_program("tessera-data", ABOUT, COMMANDS, "data_tools.commands", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

"""Index WebDataset tars of foreign origin, so that they can be trained on without being written again.

Writes NAME.tar.idx beside each tar of the folder, and manifest.json. The tars stay as they are. They must be
uncompressed, with the members of a sample next to each other, as every WebDataset writer leaves them.

Example:
  tessera-data index s3://bucket/laion-subset --num-workers 16
"""

import argparse
import json

from data_tools.index import index_dataset
from data_tools.pool import usable_cpus


def configure(parser: argparse.ArgumentParser) -> None:
    """One folder."""
    parser.add_argument("url", metavar="URL", help="folder of tars; a path or an fsspec URL")
    parser.add_argument("--num-workers", type=int, default=usable_cpus(), metavar="N", help="worker processes")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Index, and say what is there now."""
    summary = index_dataset(args.url, args.num_workers)
    counts = f"{summary['samples']} samples in {summary['shards']} shards ({summary['indexed_now']} indexed now)"
    print(json.dumps(summary) if args.json else f"{args.url}: {counts}")
    return 0

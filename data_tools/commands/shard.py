"""Turn pictures with captions into WebDataset shards with an index, a table of every input, and a manifest.

INPUT is a folder (each picture beside a .txt or .json of the same name) or a .csv, .tsv, .jsonl or .parquet file with a
column for the path and one for the caption. Pictures become upright 8-bit sRGB; JPEG and PNG that need no change are
stored byte for byte. What cannot be read is listed with its reason in the shard's table, and the run goes on. The same
command again writes only the shards that are missing.

Example:
  tessera-data shard pictures --out shards --size 256 --resize center_crop
  tessera-data shard captions.parquet --out s3://bucket/shards --size 512 --resize keep_ratio --num-workers 16
"""

import argparse
import json

from data_tools.pool import usable_cpus
from data_tools.shard import ShardConfig, shard_dataset
from pipeline.config import parse_config


def configure(parser: argparse.ArgumentParser) -> None:
    """Input, output, and what becomes of each picture."""
    add = parser.add_argument
    add("input", metavar="INPUT", help="folder or table; a path or an fsspec URL")
    add("--out", required=True, metavar="URL", help="folder or URL for the shards")
    add("--size", type=int, metavar="S", help="side in pixels (default: pictures keep their size)")
    add("--resize", choices=("center_crop", "keep_ratio", "none"), help="default center_crop with --size, else none")
    add("--samples-per-shard", type=int, default=1000, metavar="N", help="input rows of one tar (default 1000)")
    add("--shuffle-seed", type=int, default=0, metavar="K", help="seed of the order over all shards (default 0)")
    add("--num-workers", type=int, default=usable_cpus(), metavar="N", help="worker processes (default: one a core)")
    add("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Shard, and say what came of it."""
    settings = {
        "size": args.size,
        "resize": args.resize or ("none" if args.size is None else "center_crop"),
        "samples_per_shard": args.samples_per_shard,
        "shuffle_seed": args.shuffle_seed,
    }
    config = parse_config(settings, ShardConfig, source="tessera-data shard")
    summary = shard_dataset(args.input, args.out, config, args.num_workers)
    print(json.dumps(summary) if args.json else _sentence(summary))
    return 0


def _sentence(summary: dict) -> str:
    lines = [
        f"{summary['out']}: {summary['samples']} samples in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB"
        f" ({summary['written_now']} shards written now)"
    ]
    lines += [f"  {count} left out: {reason}" for reason, count in summary["failures"].items()]
    if summary["without_caption"]:
        lines.append(f"  {summary['without_caption']} have no caption")
    return "\n".join(lines)

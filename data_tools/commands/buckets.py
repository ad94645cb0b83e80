"""Sort the pictures of a dataset into shapes, so that training sees them uncut: `data.aspect_buckets=true`.

Writes one byte for each sample beside the shards (buckets.bin, buckets.json): the shape of at most SIZE squared pixels
that is nearest to the picture's own. Every batch of training is of one shape; all ranks make the same steps. The
pictures have to be sharded uncut (`tessera-data shard --resize keep_ratio`).

Example:
  tessera-data buckets shards --image-size 512 --multiple 64
"""

import argparse
import json

import numpy as np

from data_tools.buckets import BucketsConfig, make_buckets
from pipeline.config import parse_config
from pipeline.data.shards import load_manifest


def configure(parser: argparse.ArgumentParser) -> None:
    """One dataset and the shapes."""
    add = parser.add_argument
    add("url", metavar="URL", help="dataset folder with its manifest.json; a path or an fsspec URL")
    add("--image-size", type=int, required=True, metavar="SIZE", help="side of the square of the same area, in pixels")
    add("--multiple", type=int, default=32, metavar="PIXELS", help="what all sides are multiples of (default 32)")
    add("--max-aspect", type=float, default=2.0, metavar="A", help="longer side over shorter side (default 2)")
    add("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Sort, write, and say how many there are of each shape."""
    settings = {name: getattr(args, name) for name in BucketsConfig.model_fields}
    config = parse_config(settings, BucketsConfig, "tessera-data buckets")
    buckets = make_buckets(args.url, load_manifest(args.url), config)
    buckets.save(args.url)
    counts = np.bincount(buckets.numbers, minlength=len(buckets.shapes)).tolist()
    rows = {f"{width}x{height}": count for (height, width), count in zip(buckets.shapes, counts, strict=True) if count}
    lines = [f"  {count:>10,} {shape}" for shape, count in rows.items()]
    text = "\n".join([f"{args.url}: {len(buckets.numbers):,} pictures in {len(rows)} shapes (width x height)", *lines])
    print(json.dumps({"url": args.url, "shapes": rows}) if args.json else text)
    return 0

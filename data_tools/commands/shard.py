"""Turn pictures with captions into WebDataset shards with an index, a table of every input, and a manifest.

INPUT is one of
  a folder of pictures, each beside a .txt or .json of the same name;
  a .csv, .tsv, .jsonl or .parquet table (also .gz, also a folder of them, or a pattern in quotes) with a column for
  path or URL, or for the picture itself in Parquet, and one for the caption; a .txt with one URL a line;
  a COCO captions .json; a folder saved by Hugging Face datasets; a WebDataset .tar or a folder of them.
Paths and URLs of any kind that fsspec knows, http(s) for the pictures of a table. Pictures become upright 8-bit sRGB;
those that need no change are stored byte for byte. What cannot be read is listed with its reason in the shard's table,
and the run goes on. The same command again writes only the shards that are missing; with --retry-failed it also tries
again what failed, and puts what it finds in its place beside what is there.

Example:
  tessera-data shard pictures --out shards --size 256 --resize center_crop
  tessera-data shard urls.parquet --out s3://bucket/shards --size 512 --resize keep_ratio --num-workers 16
  tessera-data shard urls.parquet --out s3://bucket/shards --shard-range $SLURM_ARRAY_TASK_ID/10
  tessera-data shard 'hf://datasets/owner/name/data/train-*.parquet' --out shards
"""

import argparse
import json
import re
from typing import get_args

from data_tools.pixels.prepare import Extension
from data_tools.pixels.resize import ResizeMode
from data_tools.pool import usable_cpus
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.web import WebConfig
from pipeline.config import UserError, parse_config

SOURCE = "tessera-data shard"


def configure(parser: argparse.ArgumentParser) -> None:
    """Input, output, what becomes of each picture, and who does the work."""
    add = parser.add_argument
    add("input", metavar="INPUT", help="folder, table, list, COCO file or tars; a path or an fsspec URL")
    add("--out", required=True, metavar="URL", help="folder or URL for the shards")
    add(
        "--picture-column",
        metavar="NAME",
        help="column with the path, URL or picture (default: the first of the usual names)",
    )
    add("--caption-column", metavar="NAME", help="column with the caption (default: the first of the usual names)")
    add("--size", type=int, metavar="S", help="side in pixels (default: pictures keep their size)")
    add("--resize", choices=get_args(ResizeMode), help="default center_crop with --size, else none")
    add("--format", choices=get_args(Extension), help="default png if all inputs are named as lossless, else jpg")
    add("--quality", type=int, default=95, metavar="Q", help="of JPEG and WebP (default 95)")
    add("--samples-per-shard", type=int, default=1000, metavar="N", help="input rows of one tar (default 1000)")
    add("--shuffle-seed", type=int, default=0, metavar="K", help="seed of the order over all shards (default 0)")
    add("--num-workers", type=int, default=usable_cpus(), metavar="N", help="worker processes (default: one a core)")
    add("--engine", choices=("process", "ray"), default="process", help="workers here, or on a Ray cluster")
    add("--shard-range", default="0/1", metavar="I/N", help="only the I-th of N parts, counted from 0; for job arrays")
    add("--retry-failed", action="store_true", help="try again what failed; not while a run reads the shards")
    add("--num-threads", type=int, default=32, metavar="N", help="downloads at once in one worker (default 32)")
    add("--num-retries", type=int, default=2, metavar="N", help="further attempts of a failed download (default 2)")
    add("--timeout-seconds", type=float, default=20.0, metavar="T", help="for each answer of a server (default 20)")
    add("--connections-per-host", type=int, default=16, metavar="N", help="at once to one host (default 16)")
    add("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Shard, and say what came of it."""
    settings = {
        "size": args.size,
        "resize": args.resize or ("none" if args.size is None else "center_crop"),
        "format": args.format,
        "quality": args.quality,
        "samples_per_shard": args.samples_per_shard,
        "shuffle_seed": args.shuffle_seed,
    }
    config = parse_config(settings, ShardConfig, SOURCE)
    web = {name: getattr(args, name) for name in WebConfig.model_fields}
    work = {
        "num_workers": args.num_workers,
        "engine": args.engine,
        "share": _share(args.shard_range),
        "retry_failed": args.retry_failed,
        "web": web,
    }
    source = open_source(args.input, args.picture_column, args.caption_column)
    summary = shard_dataset(source, args.input, args.out, config, parse_config(work, WorkConfig, SOURCE))
    print(json.dumps(summary) if args.json else _sentence(summary))
    return 0


def _share(text: str) -> tuple[int, int]:
    """`3/10` -> (3, 10)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard-range {text}: write I/N with I from 0 to N - 1, as 0/4 to 3/4")
    return int(match[1]), int(match[2])


def _sentence(summary: dict) -> str:
    lines = [
        f"{summary['out']}: {summary['samples']} samples in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB"
        f" ({summary['written_now']} shards written now)"
    ]
    lines += [f"  {count} left out: {reason}" for reason, count in summary["failures"].items()]
    if summary["without_caption"]:
        lines.append(f"  {summary['without_caption']} have no caption")
    if summary["missing"]:
        lines.append(f"  {summary['missing']} shards are still missing; the command that writes the last one finishes")
    return "\n".join(lines)

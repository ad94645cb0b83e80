"""Check a dataset: bytes against the manifest, indexes against the tars, every picture, caption, key and table row.

Prints one line for each problem, with shard and key, and exits with 1 if there is any. A sample without a caption is
counted, not a problem. With --repair the shards that have problems are written again without their bad samples, which
are kept in the folder `quarantine` of the dataset; then everything is checked once more.

Example:
  tessera-data validate shards
  tessera-data validate shards --repair
"""

import argparse
import json

from data_tools.check_shard import ShardCheck
from data_tools.pool import usable_cpus
from data_tools.repair import QUARANTINE, repair_dataset
from data_tools.validate import validate_dataset

NUM_SHOWN = 50


def configure(parser: argparse.ArgumentParser) -> None:
    """One dataset."""
    parser.add_argument("url", metavar="URL", help="dataset folder with its manifest.json; a path or an fsspec URL")
    parser.add_argument("--repair", action="store_true", help="write again what is broken; keep the bad in quarantine")
    parser.add_argument("--num-workers", type=int, default=usable_cpus(), metavar="N", help="worker processes")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, with all problems")


def run(args: argparse.Namespace) -> int:
    """Check, print, repair if asked to, and fail if something is wrong."""
    checks = validate_dataset(args.url, args.num_workers)
    found = problems_of(checks)
    repaired = bool(args.repair and found)
    if repaired:
        repair_dataset(args.url, checks)
        checks = validate_dataset(args.url, args.num_workers)
    left = problems_of(checks)
    counts = {
        "samples": sum(check.num_samples for check in checks),
        "without_caption": sum(check.num_without_caption for check in checks),
    }
    if args.json:
        summary = {"url": args.url, "shards": len(checks), **counts, "problems": left}
        print(json.dumps(summary | ({"repaired": found} if repaired else {})))
        return 1 if left else 0
    _show(found)
    if repaired:
        print(f"repaired; what was bad is in {args.url.rstrip('/')}/{QUARANTINE}")
        _show(left)
    verdict = f"{len(left)} problem{'s' * (len(left) > 1)}" if left else "no problem found"
    print(
        f"{args.url}: {counts['samples']} samples in {len(checks)} shards,"
        f" {counts['without_caption']} without caption: {verdict}"
    )
    return 1 if left else 0


def problems_of(checks: list[ShardCheck]) -> list[str]:
    """One line for each fault: shard, key, reason."""
    return [f"{check.name}: {fault}" for check in checks for fault in check.faults]


def _show(problems: list[str]) -> None:
    for line in problems[:NUM_SHOWN]:
        print(line)
    if len(problems) > NUM_SHOWN:
        print(f"... and {len(problems) - NUM_SHOWN} more; --json lists all")

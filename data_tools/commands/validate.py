"""Check a dataset: bytes against the manifest, the index against the tars, every picture, caption, key and table row.

Prints one line for each problem and exits with 1 if there is any. A sample without a caption is counted, not a problem.

Example:
  tessera-data validate shards
"""

import argparse
import json

from data_tools.pool import usable_cpus
from data_tools.validate import validate_dataset

NUM_SHOWN = 50


def configure(parser: argparse.ArgumentParser) -> None:
    """One dataset."""
    parser.add_argument("url", metavar="URL", help="dataset folder with its manifest.json; a path or an fsspec URL")
    parser.add_argument("--num-workers", type=int, default=usable_cpus(), metavar="N", help="worker processes")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, with all problems")


def run(args: argparse.Namespace) -> int:
    """Check, print, and fail if something is wrong."""
    checks = validate_dataset(args.url, args.num_workers)
    problems = [f"{check.name}: {problem}" for check in checks for problem in check.problems]
    num_samples = sum(check.num_samples for check in checks)
    without = sum(check.num_without_caption for check in checks)
    if args.json:
        summary = {"url": args.url, "shards": len(checks), "samples": num_samples, "without_caption": without}
        print(json.dumps(summary | {"problems": problems}))
    else:
        for line in problems[:NUM_SHOWN]:
            print(line)
        if len(problems) > NUM_SHOWN:
            print(f"... and {len(problems) - NUM_SHOWN} more; --json lists all")
        verdict = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "no problem found"
        print(f"{args.url}: {num_samples} samples in {len(checks)} shards, {without} without caption: {verdict}")
    return 1 if problems else 0

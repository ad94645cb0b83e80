"""Write one HTML page about a dataset: counts, what was left out and why, sizes, captions, and a sheet of pictures.

The page needs no other file and no network.

Example:
  tessera-data report shards --out report.html
"""

import argparse
import json

from data_tools.report import write_report


def configure(parser: argparse.ArgumentParser) -> None:
    """One dataset and one page."""
    parser.add_argument("url", metavar="URL", help="dataset folder with its manifest.json; a path or an fsspec URL")
    parser.add_argument("--out", required=True, metavar="FILE", help="page to write; a path or an fsspec URL")
    parser.add_argument("--json", action="store_true", help="print the main counts as JSON")


def run(args: argparse.Namespace) -> int:
    """Look, write, and say where."""
    found = write_report(args.url, args.out)
    samples, failed = found.manifest.num_samples, found.failures.total()
    summary = {"out": args.out, "samples": samples, "failed": failed, "failures": dict(found.failures)}
    print(json.dumps(summary) if args.json else f"{args.out}: {samples} samples, {failed} left out")
    return 0

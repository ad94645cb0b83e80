"""Choose which samples of a dataset count, without writing a shard again: filters, duplicates, opt-outs.

Writes one bit for each sample beside the shards (selection.bits, selection.json), and everything that opens the dataset
for training sees the chosen samples alone. A new selection replaces the one before it. --stats tells what each rule
removes and writes nothing; --clear removes the selection.

Example:
  tessera-data mask shards --min-side 256 --max-aspect 2 --min-words 3 --language en
  tessera-data mask shards --where "similarity >= 0.3" --opt-out keys.txt --exact-duplicates --near-duplicates 4 --stats
  tessera-data mask shards --clear
"""

import argparse
import json

from data_tools.mask import MaskConfig, make_selection
from data_tools.pool import usable_cpus
from pipeline.config import parse_config
from pipeline.data.selection import remove_selection
from pipeline.data.shards import load_manifest


def configure(parser: argparse.ArgumentParser) -> None:
    """One dataset and the rules."""
    add = parser.add_argument
    add("url", metavar="URL", help="dataset folder with its manifest.json; a path or an fsspec URL")
    add("--min-side", type=int, metavar="PIXELS", help="shorter side of the picture as found")
    add("--max-aspect", type=float, metavar="A", help="longer side over shorter side, as found")
    add("--min-words", type=int, metavar="N", help="words of the caption")
    add("--max-words", type=int, metavar="N", help="words of the caption")
    add("--language", metavar="LL", help="of the caption, as en; needs tessera[language]")
    add("--where", action="append", default=[], metavar="CONDITION", help="on a column, as 'similarity >= 0.3'")
    add("--opt-out", metavar="FILE", help="keys or URLs, one a line, of samples that must not be used")
    add("--exact-duplicates", action="store_true", help="of equal picture files keep the first")
    add("--near-duplicates", type=int, metavar="BITS", help="of pictures that look alike keep the first; 4 is careful")
    add("--stats", action="store_true", help="only tell what each rule would remove")
    add("--clear", action="store_true", help="remove the selection: all samples count again")
    add("--num-workers", type=int, default=usable_cpus(), metavar="N", help="worker processes")
    add("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Choose, and say what each rule removed."""
    manifest = load_manifest(args.url)
    if args.clear:
        remove_selection(args.url)
        print(json.dumps({"url": args.url}) if args.json else f"{args.url}: all {manifest.num_samples} samples count")
        return 0
    settings = {name: getattr(args, name) for name in MaskConfig.model_fields}
    config = parse_config(settings | {"where": tuple(args.where)}, MaskConfig, "tessera-data mask")
    selection = make_selection(args.url, manifest, config, args.num_workers)
    if not args.stats:
        selection.save(args.url)
    kept = int(selection.keep.sum())
    summary = {"url": args.url, "samples": manifest.num_samples, "kept": kept, "removed": selection.removed}
    lines = [f"  {count:>10,} {rule}" for rule, count in selection.removed.items()]
    verb = "would be kept" if args.stats else "count now"
    text = "\n".join([f"{args.url}: {kept:,} of {manifest.num_samples:,} samples {verb}; removed:", *lines])
    print(json.dumps(summary) if args.json else text)
    return 0

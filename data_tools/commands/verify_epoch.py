"""Prove that a run trained on each sample exactly once an epoch, through all its kills, resumes and resizes.

Training keeps a ledger: of each step, sums over the samples that were really read and decoded. This command computes
the same from the manifest and the seed, reads every sample's key from the shards' tables, and compares step by step,
along the run's committed checkpoints. The exit code is 1 when something differs.

Example:
  tessera-data verify-epoch runs/demo/autoencoder
  tessera-data verify-epoch runs/large --ids-only
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_tools.verify_epoch import Verdict

NUM_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """One run."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--ids-only", action="store_true", help="do not read the samples' keys (8 bytes each in memory)"
    )
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON, with all faults")


def run(args: argparse.Namespace) -> int:
    """Compute, compare, say."""
    from data_tools.run_plan import keys_of, open_run
    from data_tools.verify_epoch import keys_by_id, verify_run

    opened = open_run(args.run)
    keys = [None if args.ids_only else keys_by_id(phase.num_ids, keys_of(phase)) for phase in opened.phases]
    verdict = verify_run(opened, keys)
    if args.json:
        print(json.dumps(asdict(verdict)))
    else:
        print("\n".join(_lines(verdict)))
    return 1 if verdict.faults else 0


def _lines(verdict: "Verdict") -> list[str]:
    """The verdict in words."""
    shown = verdict.faults[:NUM_SHOWN]
    if len(verdict.faults) > NUM_SHOWN:
        shown.append(f"... and {len(verdict.faults) - NUM_SHOWN} more; --json lists all")
    ranks = " then ".join(map(str, verdict.ranks))
    facts = (
        f"{verdict.num_samples:,} samples in {verdict.num_steps:,} steps, {verdict.num_attempts} starts, {ranks} ranks"
    )
    if verdict.faults:
        return [*shown, f"{facts}: NOT proved, {len(verdict.faults)} faults"]
    epochs = ", ".join(f"{whole} whole epochs of {size:,}" for whole, size in verdict.epochs)
    bad = f"; {verdict.num_substitutes} times a substitute for an unreadable one" if verdict.num_substitutes else ""
    return [f"{facts}: {epochs}, each sample exactly once in each, no sample out of its place{bad}"]

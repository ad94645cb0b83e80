"""Which generations stay, and the removal of the others. Called by `store` after a commit, and by `mirror`."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.checkpoint.generation import MANIFEST, DamagedError, Generation, committed, folder_of, folders


def prune(directory: Path, keep: int, keep_every_samples: int) -> list[Path]:
    """Remove all but the newest `keep` committed generations, and what killed attempts left behind.

    Runs after a commit only, so the newest is whole; an unfinished folder is never counted as one of those kept.

    Args:
        keep_every_samples: the first generation of each so many samples stays as well; 0 keeps none.

    Returns:
        What is left.
    """
    kept = committed(directory)[:keep]
    if keep_every_samples:
        kept += [folder_of(directory, n) for n in snapshots(_samples_seen(directory), keep_every_samples)]
    for path in folders(directory):
        if path not in kept:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that it is unfinished while it goes
            shutil.rmtree(path, ignore_errors=True)
    return kept


def snapshots(samples_seen: Mapping[int, int], every_samples: int) -> set[int]:
    """The oldest generation of each stretch of so many samples, by number, the first stretch left out."""
    oldest = {samples_seen[number] // every_samples: number for number in sorted(samples_seen, reverse=True)}
    return {number for stretch, number in oldest.items() if stretch > 0}


def _samples_seen(directory: Path) -> dict[int, int]:
    """Of each committed generation by its number, but of those whose manifest is damaged."""
    found: dict[int, int] = {}
    for path in committed(directory):
        with suppress(DamagedError):
            generation = Generation.open(path)
            found[generation.number] = generation.progress["samples_seen"]
    return found

"""Which generations stay, and the removal of the others. Called by `store` after a commit."""

import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.checkpoint.generation import MANIFEST, DamagedError, Generation, committed, folders


def prune(directory: Path, keep: int, keep_every_samples: int) -> list[Path]:
    """Remove all but the newest `keep` committed generations, and what killed attempts left behind.

    Runs after a commit only, so the newest is whole; an unfinished folder is never counted as one of those kept.

    Args:
        keep_every_samples: the first generation of each so many samples stays as well; 0 keeps none.

    Returns:
        What is left.
    """
    kept = committed(directory)[:keep] + _snapshots(directory, keep_every_samples)
    for path in folders(directory):
        if path not in kept:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that it is unfinished while it goes
            shutil.rmtree(path, ignore_errors=True)
    return kept


def _snapshots(directory: Path, every_samples: int) -> list[Path]:
    """The oldest generation of each stretch, the first stretch left out."""
    if not every_samples:
        return []
    oldest: dict[int, Path] = {}
    for path in committed(directory):  # newest first
        with suppress(DamagedError):
            oldest[Generation.open(path).progress["samples_seen"] // every_samples] = path
    return [path for stretch, path in oldest.items() if stretch > 0]

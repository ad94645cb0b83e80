"""The storage under the run folder: its clock and its room. Called by `examine`."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from pipeline.doctor.finding import Finding, Status, first_line, gib

MAX_CLOCK_SKEW_SECONDS = 5.0


def check_clock(run: Path) -> Finding:
    """This clock against that of the storage under the run folder: a skew breaks S3 signatures and lease times."""
    folder = _existing_parent(run)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            skew = abs(os.fstat(file.fileno()).st_mtime - time.time())
    except OSError as error:
        return Finding("clock", Status.FAILURE, first_line(error), f"make {folder} writable, or name another run=")
    found = f"{skew:.1f} s from the storage's"
    if skew > MAX_CLOCK_SKEW_SECONDS:
        return Finding("clock", Status.WARNING, found, "synchronise it (timedatectl set-ntp true) here and there")
    return Finding("clock", Status.OK, found)


def check_disk(run: Path, state_bytes: int | None) -> Finding:
    """Room for two generations: the next one is written before the oldest goes."""
    folder = _existing_parent(run)
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} free under {folder}"
    if state_bytes is None:
        return Finding("disk", Status.OK, found)
    found += f"; a generation takes {gib(state_bytes)}"
    if free < 2 * state_bytes:
        return Finding("disk", Status.FAILURE, found, "make room for two generations, or name another run=")
    return Finding("disk", Status.OK, found)


def _existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())

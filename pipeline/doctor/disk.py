"""Where the run writes: the clock and the room of its disk, the rights on its object store. Called by `examine`."""

import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from pipeline import storage
from pipeline.config import UserError
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


def check_rights(url: str) -> Finding:
    """An object written, read, listed and removed again: what checkpoints there need."""
    name, place = f"rights {url}", storage.join(url, f".doctor-{uuid.uuid4().hex}")
    step = "write"
    try:
        storage.write_bytes(place, b"tessera")
        step = "read"
        if storage.read_bytes(place) != b"tessera":
            return Finding(name, Status.FAILURE, "reads other bytes than were written", "ask whoever runs the storage")
        step = "list"
        if place.rpartition("/")[2] not in storage.list_names(url):
            return Finding(name, Status.FAILURE, "does not list what was written", "grant s3:ListBucket")
        step = "remove"
        storage.remove(place)
    except (OSError, UserError) as error:
        remedy = "grant s3:PutObject, GetObject, ListBucket and DeleteObject, and check AWS_* and AWS_ENDPOINT_URL"
        return Finding(name, Status.FAILURE, f"cannot {step}: {first_line(error)}", remedy)
    return Finding(name, Status.OK, "writes, reads, lists, removes")


def _existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())

"""Writing one rank's share of a generation: its runs, laid end to end, and its random state, in one safetensors file.

Called by `store` on every rank, in a thread beside the training: safetensors, sha256 and fsync all let go of the GIL.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.generation import FileRecord
from pipeline.checkpoint.reader import INDEX, encode_index
from pipeline.checkpoint.staging import Snapshot
from pipeline.storage import sha256_of, sync_directory

RETRY_SECONDS = (1.0, 5.0)
"""Waits before a write that failed is tried again: network file systems have bad moments."""

log = logging.getLogger(__name__)

T = TypeVar("T")


def write_rank_file(folder: Path, rank: int, snapshot: Snapshot, extra: Mapping[str, Tensor]) -> FileRecord:
    """Write `rank-00000.safetensors` of this rank, durable and whole; `extra` are tensors for this rank alone.

    Raises:
        OSError: the write failed, also when tried again.
    """
    path = folder / f"rank-{rank:05d}.safetensors"
    metadata = {INDEX: encode_index(snapshot.runs)}
    with_retries(lambda: _write_durably(path, {**snapshot.tensors, **extra}, metadata))
    return FileRecord(path.name, path.stat().st_size, sha256_of(path))


def with_retries(work: Callable[[], T]) -> T:
    """`work()`, tried again after an OSError and a wait, a few times."""
    for wait in RETRY_SECONDS:
        try:
            return work()
        except OSError as error:
            log.warning("checkpoint: %s; trying again in %.0f s", error, wait)
            time.sleep(wait)
    return work()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators of this rank."""
    states = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(device: torch.device, read: Callable[[str], Tensor | None]) -> None:
    """Put back what `random_state` saved; a rank that was not there keeps its own."""
    if (state := read("random/cpu")) is not None:
        torch.set_rng_state(state)
    if device.type == "cuda" and (state := read("random/cuda")) is not None:
        torch.cuda.set_rng_state(state, device)


def _write_durably(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata)
    except SafetensorError as error:  # its only name for a full disk
        raise OSError(f"{partial}: {error}") from None
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    sync_directory(path.parent)

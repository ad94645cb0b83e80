"""Decoding in threads against spawned processes: the same decoder, the same pictures, two of each.

    PYTHONPATH=. python -m benchmarks.decoding FOLDER [ROUNDS]

FOLDER is that of `benchmarks.loading`. Both sides are given the members of 32 samples at a time and give back stacked
pixels, as `pipeline.data.reader` and a DataLoader's worker do. Time of starting processes does not count.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.loading import cpu_seconds
from pipeline.data.captions import CaptionChoice
from pipeline.data.pictures import PictureDecoder
from pipeline.data.tar import TarSample, parse_samples
from pipeline.randomness import Draws

BATCH, WORKERS, SIDE = 32, 2, 256
Batch = list[tuple[int, TarSample]]


def main() -> None:
    """All rounds, interleaved, then medians."""
    root, rounds = Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 5
    samples = [
        sample for path in sorted((root / "shards").glob("*.tar")) for sample in parse_samples(path.read_bytes())
    ]
    rows = list(enumerate(samples))
    batches = [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
    pools: dict[str, Executor] = {
        "threads": ThreadPoolExecutor(WORKERS),
        "spawned processes": ProcessPoolExecutor(WORKERS, get_context("spawn")),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in pools}
    for number in range(rounds + 1):
        for name, pool in pools.items():
            row = timed(partial(consumed, pool, batches))
            if number:  # the first brings imports and processes
                found[name].append(row)
    for name, times in found.items():
        wall, cpu = (median(column) for column in zip(*times, strict=True))
        print(f"{name:<18} {len(rows) / wall:8.0f} samples/s {1000 * cpu / len(rows):8.3f} CPU s per 1,000")
    for pool in pools.values():
        pool.shutdown()


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(seconds, CPU seconds of the process tree)."""
    cpu, start = cpu_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - start, cpu_seconds() - cpu


def consumed(pool: Executor, batches: list[Batch]) -> None:
    """Every batch decoded, and looked at where training would take it."""
    for pixels in pool.map(decoded, batches):
        assert pixels.shape[1:] == (3, SIDE, SIDE)


def decoded(batch: Batch) -> np.ndarray:
    """uint8 [B, 3, H, W]."""
    decoder = PictureDecoder(lambda sample_id: (SIDE, SIDE), CaptionChoice((), Draws(0)), Draws(0), True, False)
    images = decoder.stack([decoder(sample, 0, number) for number, sample in batch]).images
    assert images is not None
    return images.numpy()


if __name__ == "__main__":
    main()

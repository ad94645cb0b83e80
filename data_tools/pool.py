"""One function over many shards in worker processes, with a progress bar. Called by `shard`, `validate` and `index`.

Workers are spawned, not forked: no client of an object store survives a fork.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from data_tools.progress import track

A = TypeVar("A")
B = TypeVar("B")


def usable_cpus() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_unordered(work: Callable[[A], B], tasks: Sequence[A], num_workers: int, label: str) -> Iterator[B]:
    """`work(task)` of every task as it is done; the first exception stops everything and is raised here."""
    if num_workers <= 1 or len(tasks) <= 1:
        yield from track(map(work, tasks), len(tasks), label)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_workers, len(tasks)), context, initializer=_leave_interrupts_to_the_parent)
    try:
        futures = [pool.submit(work, task) for task in tasks]
        yield from track((future.result() for future in as_completed(futures)), len(tasks), label)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches the whole process group; only the parent answers, the workers finish their shard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""One function over many tasks in worker processes, threads, or on a Ray cluster, with a progress bar.

Tasks are made as workers become free, so that as many wait as there are workers, however many there are. Called by
`shard`, `validate` and `index`. Worker processes are spawned, not forked: no client of an object store survives a fork.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Literal, TypeVar

from data_tools.progress import track
from pipeline.config import UserError

A = TypeVar("A")
B = TypeVar("B")

Engine = Literal["process", "thread", "ray"]


def usable_cpus() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_unordered(
    work: Callable[[A], B],
    tasks: Iterable[A],
    num_tasks: int,
    num_workers: int,
    label: str,
    engine: Engine = "process",
) -> Iterator[B]:
    """`work(task)` of every task as it is done; the first exception stops everything and is raised here.

    Raises:
        UserError: a worker was killed; what is done stays, and the same command goes on.
    """
    if engine == "ray":
        from data_tools.ray_engine import map_on_ray

        results = map_on_ray(work, tasks)
    elif min(num_workers, num_tasks) <= 1:
        results = map(work, tasks)
    else:
        results = _map_in_pool(work, tasks, min(num_workers, num_tasks), engine)
    return track(results, num_tasks, label)


def _map_in_pool(work: Callable[[A], B], tasks: Iterable[A], num_workers: int, engine: Engine) -> Iterator[B]:
    tasks = iter(tasks)
    pool = _pool(num_workers, engine)
    try:
        waiting: set[Future[B]] = {pool.submit(work, task) for task in islice(tasks, 2 * num_workers)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(work, task) for task in islice(tasks, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed, maybe for want of memory; the same command goes on") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(num_workers: int, engine: Engine) -> Executor:
    if engine == "thread":
        return ThreadPoolExecutor(num_workers)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, context, initializer=_leave_interrupts_to_the_parent)


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches the whole process group; only the parent answers, the workers finish their shard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

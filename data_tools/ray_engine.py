"""The same function over the same tasks on a Ray cluster; a task whose worker dies is run again by Ray.

Called by `data_tools.pool` for `--engine ray`; needs `pip install tessera[ray]`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from pipeline.config import UserError

A = TypeVar("A")
B = TypeVar("B")

NUM_ATTEMPTS = 4
"""Of a task whose worker dies; an exception in the task itself is not tried again."""


def map_on_ray(work: Callable[[A], B], tasks: Iterable[A]) -> Iterator[B]:
    """`work(task)` of every task as it is done, one core for each.

    The cluster is the one of RAY_ADDRESS or of this machine's `ray start`, else a local one is started. The project
    and the inputs have to be there under the same paths on every machine.

    Raises:
        UserError: Ray is not installed, or a worker died again and again.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray: Ray is not installed; pip install 'tessera[ray]'") from None
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    remote = ray.remote(num_cpus=1, max_retries=NUM_ATTEMPTS - 1)(work)
    tasks = iter(tasks)
    waiting = [remote.remote(task) for task in islice(tasks, _num_at_once())]
    while waiting:
        done, waiting = ray.wait(waiting)
        waiting += [remote.remote(task) for task in islice(tasks, _num_at_once() - len(waiting))]
        try:
            yield from ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.WorkerCrashedError:
            raise UserError(f"a Ray worker died {NUM_ATTEMPTS} times in one shard; the same command goes on") from None


def _num_at_once() -> int:
    """Tasks under way or waiting: twice the cores of the cluster as it is now, which may grow."""
    import ray

    return 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))

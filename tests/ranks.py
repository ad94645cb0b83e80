"""Several real processes for a test: gloo on a free port of the loopback.

    results = run_ranks(body, 2, argument)      # body(argument) on each rank, results in rank order

`body` is a top-level function of an importable module and may return anything picklable. An exception or a death on
any rank ends all of them and fails the test with that rank's traceback.
"""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any


def free_port() -> int:
    """A port of the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(body: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 300.0) -> list[Any]:
    """Run `body(*args)` in `world_size` spawned processes with a torchrun-like environment; their results in order.

    The process group is not started: `pipeline.distributed.process.start()` does it, as in a real run.
    """
    context = multiprocessing.get_context("spawn")
    port = free_port()
    workers, pipes = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_main, args=(sender, rank, world_size, port, body, args), daemon=True)
        worker.start()
        sender.close()
        workers.append(worker)
        pipes.append(receiver)
    try:
        return _collect(workers, pipes, time.monotonic() + timeout_seconds)
    finally:
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
                worker.join()


def _collect(workers: list[BaseProcess], pipes: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, timeout=max(deadline - time.monotonic(), 0.0))
        if not ready:
            raise AssertionError(f"ranks {[pipes.index(pipe) for pipe in waiting]} did not finish in time")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                failed, results[rank] = pipes[rank].recv()
            except EOFError:
                workers[rank].join(timeout=5)
                code = workers[rank].exitcode
                raise AssertionError(f"rank {rank} died without a word (exit code {code})") from None
            if failed:
                raise AssertionError(f"rank {rank} failed:\n{results[rank]}")
    return [results[rank] for rank in range(len(pipes))]


def _main(sender: Connection, rank: int, world_size: int, port: int, body: Callable[..., Any], args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    import torch

    torch.set_num_threads(1)
    try:
        sender.send((False, body(*args)))
    except BaseException:
        sender.send((True, traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

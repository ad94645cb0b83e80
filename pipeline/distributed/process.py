"""This process among its peers: start, device, and the few collectives that the program needs.

Under torchrun or Slurm the rendezvous comes from the environment; without it the process is a world of one, which
needs no port. Every other room asks here and never `torch.distributed`, so each works in a plain process as well.
"""

import ctypes
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from pipeline.config import Config, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LEAVING: list[Callable[[], None]] = []
_STARTS = itertools.count()


class RankError(Exception):
    """Work that all ranks depend on failed on one of them; raised on all."""


class ProcessConfig(Config):
    """How the processes of a run find and wait for each other."""

    device: str = "auto"
    """`auto` (the rank's GPU where there is one), `cpu` or `cuda`."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """How long a collective waits for a missing rank before the run fails."""
    hang_seconds: float = Field(default=600.0, ge=0)
    """No step for so long, or no word of a rank, and the watchdog ends the run; 0 never does."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Of one device in the run's precision, for the MFU; None is the data sheet's of a GPU that Tessera knows."""


@dataclass(frozen=True)
class Process:
    """Where this process stands in the run."""

    rank: int = 0
    """Number among all processes."""
    local_rank: int = 0
    """Number among the processes of this machine."""
    world_size: int = 1
    """How many processes there are."""
    device: torch.device = torch.device("cpu")
    """Where this rank computes."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that talks: console, journal, pictures."""
        return self.rank == 0


def start(config: ProcessConfig | None = None) -> Process:
    """Join the process group (or found a world of one) and choose the device. Calling it twice is harmless.

    Raises:
        UserError: the environment names a world but not the whole rendezvous, or a device that is not there.
    """
    config = config or ProcessConfig()
    rank, world_size = environment_number("RANK", 0), environment_number("WORLD_SIZE", 1)
    local_rank = environment_number("LOCAL_RANK", 0)
    device = _device(config.device, local_rank)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_the_parent()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=config.timeout_seconds)
        _stay_on_this_machine(world_size)
        store = dist.PrefixStore(f"start-{next(_STARTS)}", _rendezvous(rank, world_size, timeout))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Process(rank, local_rank, world_size, device)


def finish() -> None:
    """Leave the process group; harmless when there is none. `start` may be called again afterwards."""
    if world_size() > 1:
        # Gloo's threads need the GIL to let go of the last collective's tensors. The group's destructor holds it while
        # it waits for those threads: without this pause one of some dozens of runs never ended.
        time.sleep(0.2)
    while _LEAVING:
        _LEAVING.pop()()
    if dist.is_initialized():
        dist.destroy_process_group()


def when_leaving(work: Callable[[], None]) -> None:
    """Run `work` in `finish`: for libraries that keep groups of their own, and would meet dead ones after a restart."""
    if work not in _LEAVING:
        _LEAVING.append(work)


def world_size() -> int:
    """Number of processes; 1 when no process group was started."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 when no process group was started."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place; returns `tensor`. The identity in a world of one."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Mean over ranks, in place; returns `tensor`. The identity in a world of one."""
    return all_reduce_sum(tensor).div_(world_size()) if world_size() > 1 else tensor


def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """The values of rank `source` on every rank, in place; returns `tensor`."""
    if world_size() > 1:
        dist.broadcast(tensor, source)
    return tensor


def on_main(process: Process, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and give its picklable result to every rank. Collective.

    Raises:
        UserError, RankError: what rank 0 raised, on every rank, so that nobody waits for a rank that is gone.
    """
    result = _attempt(work) if process.is_main else None
    if world_size() > 1:
        box = [result]
        dist.broadcast_object_list(box, 0)
        result = box[0]
    assert result is not None
    return _unwrap([result])[0]


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank and give all picklable results to every rank, in rank order. Collective.

    Raises:
        UserError, RankError: what the first failing rank raised, on every rank.
    """
    result = _attempt(work)
    results = [result] * world_size()
    if world_size() > 1:
        dist.all_gather_object(results, result)
    return _unwrap(results)


def barrier() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def mean_of_floats(values: Sequence[float]) -> list[float]:
    """Mean over ranks of each value, in float64, the same bits on every rank; travels over the CPU.

    A NaN of any rank makes the mean of that value NaN on all.
    """
    return all_reduce_mean(torch.tensor(list(values), dtype=torch.float64)).tolist()


def any_rank(flag: bool) -> bool:
    """True on every rank when `flag` is true on any. Travels over the CPU, so a GPU is not waited for."""
    return bool(all_reduce_sum(torch.tensor(int(flag))))


@dataclass
class _Result(Generic[T]):
    """What one rank's work came to: a value, or an error in words."""

    value: T | None = None
    error: str = ""
    users_mistake: bool = False


def _attempt(work: Callable[[], T]) -> _Result[T]:
    try:
        return _Result(work())
    except Exception as error:  # whatever it is, the other ranks have to hear of it
        if world_size() == 1:
            raise
        log.debug("this rank failed", exc_info=True)
        return _Result(None, f"{error}" if isinstance(error, UserError) else repr(error), isinstance(error, UserError))


def _unwrap(results: list[_Result[T]]) -> list[T]:
    for rank, result in enumerate(results):
        if result.users_mistake:
            raise UserError(result.error)
        if result.error:
            raise RankError(f"rank {rank}: {result.error}")
    return [cast(T, result.value) for result in results]


def environment_number(name: str, default: int) -> int:
    """A count that torchrun or Slurm has put into the environment.

    Raises:
        UserError: it is no whole number.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"{name}={text!r} in the environment is not a whole number: unset it, or start with torchrun")
    return int(text)


@cache
def _rendezvous(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Where the ranks meet. Kept for the life of the process: a second `start` could else meet the end of the first."""
    if world_size == 1:
        return dist.HashStore()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        names = ", ".join(missing)
        raise UserError(f"WORLD_SIZE={world_size} but {names} not set: start with torchrun, or unset WORLD_SIZE")
    store: dist.Store = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))[0]
    return store


def _stay_on_this_machine(world_size: int) -> None:
    """Let gloo talk over the loopback when no rank is elsewhere: it works also where the host name does not resolve."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback and environment_number("LOCAL_WORLD_SIZE", 1) == world_size:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _die_with_the_parent() -> None:
    """A torchrun that is killed leaves its ranks behind, with their GPUs: let the kernel (Linux) end them with it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise UserError(f"process.device={name!r}: use auto, cpu or cuda")
    if local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"local rank {local_rank} has no GPU of its own ({count} visible): start fewer processes")
    return torch.device("cuda", local_rank)

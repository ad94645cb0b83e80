"""How a run is asked to stop, and what it tells the launcher of its end.

Signals and files only raise a flag here; the trainer agrees on it over the ranks at the end of a step, saves and
leaves. Used by `pipeline.trainer` and the train command; the other side of the files is `launch/slurm.sbatch`.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline.config import UserError
from pipeline.distributed.process import environment_number

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What a scheduler, a terminal and Slurm's `--signal=USR1@...` send when a run should save and leave."""

STOP_FILE = "TESSERA_STOP_FILE"
"""Environment variable that names a file; when a launcher makes that file, the run saves and leaves. For what no signal
reaches: torchrun dies of SIGUSR1 and leaves its ranks behind."""

REFUSED_FILE = "TESSERA_REFUSED_FILE"
"""Environment variable that names a file; a run that ends by its user's mistake makes it, so that no launcher starts it
again in vain."""


SLURM_START, SLURM_END = "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME"
"""Slurm's word (22.05 and later) for when a job began and has to end, in seconds since 1970."""

MARGIN_SECONDS = 300.0
"""How long before the end of such a job a run stops by itself; a tenth of a job that is shorter than 50 minutes."""


class StopRequest:
    """Whether this rank was asked to stop. Ranks hear of it at different moments: agree before acting on it."""

    def __init__(self) -> None:
        self._signalled = False
        name = (
            os.environ.get(STOP_FILE) if environment_number("RANK", 0) == 0 else None
        )  # one rank asks the shared storage
        self._file = Path(name) if name else None
        self._stop_at = math.inf if STOP_FILE in os.environ else _stop_time()  # our launcher tells it itself

    @property
    def requested(self) -> bool:
        """True once a signal came, the launcher's file is there, or a job's time is nearly up."""
        return self._signalled or time.time() >= self._stop_at or (self._file is not None and self._file.exists())

    def note_signal(self) -> None:
        """What a signal handler does: no more than this."""
        self._signalled = True


def _stop_time() -> float:
    """When to stop a run that somebody else's Slurm script has started; inf elsewhere."""
    start, end = (environment_number(name, 0) for name in (SLURM_START, SLURM_END))
    return end - min(MARGIN_SECONDS, 0.1 * (end - start)) if 0 < start < end else math.inf


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside the block SIGTERM, SIGINT and SIGUSR1 only raise a flag; a second SIGINT acts as usual."""
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.note_signal()

    if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread only
        yield stop
        return
    previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def refusal_noted() -> Iterator[None]:
    """Makes the launcher's file (`REFUSED_FILE`) when the block ends by a `UserError`, which goes on."""
    try:
        yield
    except UserError:
        if name := os.environ.get(REFUSED_FILE):
            Path(name).touch()
        raise

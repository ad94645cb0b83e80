"""Ends a run that goes no further, with the name of the rank that holds it up, instead of letting it wait for hours.

Each rank writes a line about itself every few seconds into RUN/heartbeats, which all ranks see. Rank 0 reads them all,
every other rank that of rank 0; `fault` says what they mean. The verdict is a file: each rank that sees it prints it
with the stacks of its threads and ends with exit code 1; a stopped process is killed by its neighbour on the machine.
Started by `pipeline.experiment` on every rank; needs no collective, and no torch.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from pipeline.distributed.beacon import BEACON
from pipeline.distributed.fault import Seen, find_late, find_silent
from pipeline.redact import redact_text

VERDICT = "verdict.json"
EXIT_HUNG = 1
LAST_BEAT_SECONDS = 5.0
"""How long a rank that ends waits for its own last beat to be written."""


class Watchdog:
    """One rank's thread."""

    def __init__(self, folder: Path, rank: int, world_size: int, hang_seconds: float) -> None:
        self.folder, self.rank, self.world_size, self.hang_seconds = folder, rank, world_size, hang_seconds
        self.interval = min(max(hang_seconds / 20, 0.1), 30.0)
        self._ended = threading.Event()
        watched = [r for r in range(world_size) if r != rank] if rank == 0 else [0]
        self._looked = now = time.monotonic()
        self._seen = {r: Seen({}, now, now) for r in {*watched, rank}}
        self._num_beats = 0
        self._thread = threading.Thread(target=self.run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def run(self) -> None:
        """Beat and look until `close`; does not return when there is a verdict."""
        while not self._ended.wait(self.interval):
            with suppress(OSError):  # a full disk is not a rank that hangs
                self._beat()
            self._look()
            if (text := self._verdict()) is not None:
                self._end(text)

    def close(self) -> None:
        """The rank has ended its work: its silence is no fault."""
        self._ended.set()
        self._thread.join(LAST_BEAT_SECONDS)  # its last beat must not come after this word
        with suppress(OSError):
            self._write(f"rank-{self.rank:05d}.json", {"rank": self.rank, "ended": True})

    def _beat(self) -> None:
        self._num_beats += 1
        who = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._num_beats}
        self._write(f"rank-{self.rank:05d}.json", who | BEACON.place())

    def _look(self) -> None:
        """Read the lines of the watched ranks, and write the verdict if there is one to make."""
        now = time.monotonic()
        self._pass_over(now - self._looked - self.interval)
        self._looked = now
        for rank, seen in self._seen.items():
            beat = _read(self.folder / f"rank-{rank:05d}.json")
            if beat and beat != seen.beat:
                seen.heard = now
                if (beat.get("step"), beat.get("phase")) != (seen.beat.get("step"), seen.beat.get("phase")):
                    seen.moved = now
                seen.beat = beat
        fault = find_silent(self._seen, now, self.hang_seconds)
        if fault is None and self.rank == 0:  # only it knows where all the others are
            fault = find_late(self._seen, now, self.hang_seconds)
        if fault is not None and not (self.folder / VERDICT).exists():
            with suppress(OSError):
                self._write(VERDICT, {"fault": fault[0], "ranks": fault[1], "told_by": self.rank})

    def _pass_over(self, late: float) -> None:
        """Time in which this watcher itself stood still tells nothing of the others: a job was stopped as a whole and
        goes on, or the shared disk was away."""
        if late > self.interval:
            for seen in self._seen.values():
                seen.heard, seen.moved = seen.heard + late, seen.moved + late

    def _verdict(self) -> str | None:
        verdict = _read(self.folder / VERDICT)
        if not verdict:
            return None
        for rank in verdict["ranks"]:
            _end_neighbour(_read(self.folder / f"rank-{rank:05d}.json"), self.rank)
        return str(verdict["fault"])

    def _end(self, text: str) -> NoReturn:
        print(redact_text(f"tessera: rank {self.rank}: {text}; stacks of this rank:"), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        time.sleep(2 * self.interval)  # the other ranks read the verdict before their group falls apart
        os._exit(EXIT_HUNG)  # the main thread waits in a collective that no exception reaches

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Whole or not at all; not fsynced, since after a crash nobody reads it."""
        partial = self.folder / f".{name}.{self.rank}"
        partial.write_text(json.dumps(dict(content)))
        partial.replace(self.folder / name)


@contextmanager
def watching(folder: Path, rank: int, world_size: int, hang_seconds: float) -> Iterator[None]:
    """Inside the block a run that stands still for `hang_seconds` is ended; 0 never does."""
    if not hang_seconds:
        yield
        return
    dog = Watchdog(folder, rank, world_size, hang_seconds)
    BEACON.note("start", 0)
    dog.start()
    try:
        yield
    finally:
        dog.close()


def _end_neighbour(beat: Mapping[str, Any], own_rank: int) -> None:
    """SIGKILL for a stopped process of this machine: it cannot read the verdict."""
    if beat and beat["rank"] != own_rank and beat.get("host") == socket.gethostname():
        with suppress(psutil.Error, ProcessLookupError):
            if psutil.Process(beat["pid"]).status() == psutil.STATUS_STOPPED:
                os.kill(beat["pid"], signal.SIGKILL)


def _read(path: Path) -> dict[str, Any]:
    """The line of a file; empty when there is none yet."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}

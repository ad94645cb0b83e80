"""What each machine of a run is doing: processor, memory, network, disk and GPUs, a line of JSON every few seconds.

On the main rank's machine the follower samples; on every other one the first rank starts this module as a process of
its own. The lines lie in RUN/journal/system-HOST.jsonl until the shipper carries them to MLflow, under the names that
its System metrics page knows.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from pipeline.tracking.journal import FOLDER

SAMPLE_SECONDS = 10.0
MEGABYTE = 1e6
_FILE = re.compile(r"system-(.+)\.jsonl")
_GPU_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"


class SystemLog:
    """Writes the lines of this machine; of several writers of one run on one machine only the first does.

    A write that fails is dropped: these are figures about the machine, and the next ones follow at once.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self._file: IO[str] | None = None
        self._due_seconds = 0.0
        path = Path(run_dir) / FOLDER / f"system-{socket.gethostname()}.jsonl"
        with contextlib.suppress(OSError):
            file = path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file = file
            except BlockingIOError:
                file.close()

    def tick(self) -> None:
        """Write a line, if the last one is long enough ago."""
        if self._file is None or time.monotonic() < self._due_seconds:
            return
        self._due_seconds = time.monotonic() + SAMPLE_SECONDS
        with contextlib.suppress(OSError):
            self._file.write(json.dumps({"time_ms": time.time_ns() // 1_000_000, "values": sample()}) + "\n")
            self._file.flush()


def sample() -> dict[str, float]:
    """What this machine is doing now: percent, megabytes and watts, as the names say."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    network = psutil.net_io_counters()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "network_receive_megabytes": network.bytes_recv / MEGABYTE if network else 0.0,
        "network_transmit_megabytes": network.bytes_sent / MEGABYTE if network else 0.0,
        **_gpus(),
    }


def _gpus() -> dict[str, float]:
    """The same for each GPU that nvidia-smi tells of; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SAMPLE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, float] = {}
    for line in text.splitlines():
        index, *fields = (field.strip() for field in line.split(","))
        names = ("utilization_percentage", "memory_usage_megabytes", "memory_total_megabytes", "power_usage_watts")
        for name, field in zip(names, fields, strict=True):
            with contextlib.suppress(ValueError):  # "[N/A]": this GPU does not tell
                found[f"gpu_{index}_{name}"] = float(field)
    return found


def read_system(run_dir: Path, offsets: dict[str, int]) -> Iterator[tuple[str, int, int, dict[str, float]]]:
    """(machine, end of the line in its file, time_ms, values) of every whole line behind `offsets`, by machine."""
    for path in sorted((run_dir / FOLDER).glob("system-*.jsonl")):
        match = _FILE.fullmatch(path.name)
        assert match is not None
        host = match[1]
        with path.open("rb") as file:
            file.seek(offsets.get(host, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end = offsets.get(host, 0) + len(line)
                offsets = {**offsets, host: end}
                with contextlib.suppress(ValueError, KeyError):  # torn by a crash, with a later line behind it
                    record = json.loads(line)
                    yield host, end, int(record["time_ms"]), record["values"]


def start_sampler(run_dir: Path | str) -> "subprocess.Popen[bytes]":
    """Sample this machine in a process of its own, until the calling process is gone."""
    command = [sys.executable, "-m", __name__, str(run_dir), "--parent", str(os.getpid())]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def main(argv: list[str]) -> None:
    """The sampler's own process."""
    parser = argparse.ArgumentParser(__name__, description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="process id of the trainer")
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    system = SystemLog(args.run)
    while os.getppid() == args.parent:
        system.tick()
        time.sleep(1.0)


if __name__ == "__main__":
    main(sys.argv[1:])

"""CPU seconds of a command with all its descendants, for races between programs. Called by `benchmarks.sharding`.

Unlike the clock they hardly depend on what else the machine does meanwhile.
"""

import os
import resource
import subprocess
import threading
import time
from collections.abc import Sequence

import psutil

from benchmarks.race import Stopwatch


def run(command: Sequence[str], watch: Stopwatch) -> None:
    """Add the CPU time of the command and of all its descendants, as far as they were waited for or seen."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen: dict[int, float] = {}
    watcher = threading.Thread(target=watch_tree, args=(process.pid, seen), daemon=True)
    watcher.start()
    _, errors = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command[:4]}: {errors.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited_for = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    watch.seconds += max(waited_for, sum(seen.values()))


def watch_tree(pid: int, seen: dict[int, float]) -> None:
    """CPU seconds of each process of a tree, as they were last seen: Ray's workers are waited for by nobody."""
    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            for process in [root, *root.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                    seen[process.pid] = times.user + times.system
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return

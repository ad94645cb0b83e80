"""The resume matrix: kill a run of two ranks at a random step, go on with 1, 2 or 4 ranks and 0 or 2 workers.

    PEERS_PYTHON=... python -m benchmarks.resume [FOLDER] [NAMES]

For each loader: samples of the epoch that came twice, that never came, whether the global batches are those of an
undisturbed run of the same kind, and the time to the first batch at 5 % and at 95 % of the epoch. FOLDER is that of
`benchmarks.loading`. Each rank is a process in a gloo group, with the variables that torchrun sets; every run ends by
SIGKILL of its ranks and their workers. The first row is an epoch that nothing disturbs: what a loader repeats there is
no fault of resuming.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed

from benchmarks.loaders import MODULES, SIDES, title
from benchmarks.loading import prepare
from pipeline.torchvision_shim import declare_missing_operators

BATCH, RANKS, WORKERS = 60, 2, 2
"""Divides the samples of every rank and worker."""
ENDLESS = ("ours", "energon")
TIMED = 5
PATIENCE_SECONDS = 90
"""A run that takes longer hangs."""


class RefusedError(Exception):
    """What a rank failed with, in one line."""


def main() -> None:
    """One process for each loader."""
    root = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="loading-"))
    prepare(root, 3000)
    for name in sys.argv[2:] or SIDES:
        python = sys.executable if name == "ours" else os.environ.get("PEERS_PYTHON", sys.executable)
        program = "from benchmarks.resume import side; import sys; side(*sys.argv[1:])"
        done = subprocess.run([python, "-c", program, name, str(root)], capture_output=True, text=True, check=False)
        print(f"\n{title(name)}", flush=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for row in rows:
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if done.returncode:
            print("  failed:", done.stderr.strip().splitlines()[-1:])


def side(name: str, root: str) -> None:
    """All cells of one loader, in an interpreter that has it and forks the ranks."""
    declare_missing_operators()
    import_module(MODULES[name])
    total = num_pictures(root)
    num_steps = total // BATCH
    whole, _ = served(name, root, RANKS, WORKERS, None, rest_of(name, num_steps))
    print(json.dumps({"ranks": RANKS, "workers": WORKERS, "not killed": True} | exactness(whole, total)), flush=True)
    at = random.Random(7).randrange(10, num_steps - 10)
    begun, states = served(name, root, RANKS, WORKERS, None, at)
    for world in (1, 2, 4):
        for workers in (0, 2):
            row: dict[str, Any] = {"ranks": world, "workers": workers}
            try:
                rest, _ = served(name, root, world, workers, states, rest_of(name, num_steps - at))
                row |= exactness(begun + rest, total)
                row["same batches"] = [sorted(step) for step in begun + rest] == [sorted(step) for step in whole]
            except RefusedError as error:  # a result too
                row["refused"] = str(error)
            print(json.dumps(row), flush=True)
    print(json.dumps(first_batches(name, root, total)), flush=True)


def rest_of(name: str, num_steps: int) -> int | None:
    """How many steps to take until the end of the epoch; None for a loader that ends there itself."""
    return num_steps if name in ENDLESS else None


def exactness(steps: list[list[str]], total: int) -> dict[str, int]:
    """Samples that came again, and that never came."""
    counts = Counter(key for step in steps for key in step)
    return {"twice": sum(counts.values()) - len(counts), "missing": total - len(counts)}


def served(
    name: str, root: str, world: int, workers: int, states: Any, num_steps: int | None
) -> tuple[list[list[str]], list[Any]]:
    """(keys of each global batch until the end of the epoch or for some steps, the state of each rank there).

    Raises:
        RefusedError: a rank failed, or said nothing for `PATIENCE_SECONDS`.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context, ends, ranks = multiprocessing.get_context("fork"), [], []
    for rank in range(world):
        here, there = context.Pipe(duplex=False)
        args = (there, name, root, rank, world, port, workers, states, num_steps)
        ranks.append(context.Process(target=run_rank, args=args))
        ends.append(here)
        ranks[-1].start()
    try:
        found = [answer(end) for end in ends]
    finally:
        for process in ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers, which would wait for it for ever
            process.kill()
            process.join()
    longest = max(len(steps) for steps, _ in found)
    batches = [[key for steps, _ in found if i < len(steps) for key in steps[i]] for i in range(longest)]
    return batches, [state for _, state in found]


def answer(end: Connection) -> tuple[list[list[str]], Any]:
    """What a rank sent."""
    if not end.poll(PATIENCE_SECONDS):
        raise RefusedError(f"nothing came for {PATIENCE_SECONDS} seconds")
    found = end.recv()
    if isinstance(found, str):
        raise RefusedError(found)
    return found


def run_rank(
    end: Connection,
    name: str,
    root: str,
    rank: int,
    world: int,
    port: int,
    workers: int,
    states: Any,
    limit: int | None,
) -> None:
    """Body of a rank's process: serve, tell, wait to be killed."""
    os.setsid()
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= group | local
    torch.set_num_threads(1)
    try:
        if world > 1:
            distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))
        opened = SIDES[name](Path(root), True, rank, world, workers, BATCH, states)
        batches = opened.batches()  # kept: some loaders forget their state with their iterator
        steps = [[key for key, _ in rows] for rows in islice(batches, limit)]
        end.send((steps, opened.state()))
    except Exception as error:
        end.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
    signal.pause()


def num_pictures(root: str) -> int:
    """Samples of an epoch."""
    return len(list(Path(root, "pictures").glob("*.jpg")))


def first_batches(name: str, root: str, total: int) -> dict[str, Any]:
    """Milliseconds from opening to the first batch, decoded, at 5 % and 95 % of the epoch: one rank, no workers."""
    states = {}
    for share in (5, 95):
        _, found = served(name, root, 1, 0, None, total * share // 100 // BATCH)
        states[share] = found
    times: dict[int, list[float]] = {5: [], 95: []}
    for _ in range(TIMED):
        for share, state in states.items():
            start = time.perf_counter()
            opened = SIDES[name](Path(root), False, 0, 1, 0, BATCH, state)
            next(iter(opened.batches()))
            times[share].append(1000 * (time.perf_counter() - start))
            opened.close()
    early, late = median(times[5]), median(times[95])
    return {"first_batch_5%_ms": round(early), "first_batch_95%_ms": round(late), "ratio": round(late / early, 2)}


if __name__ == "__main__":
    main()

"""The resume matrix: kill a run of two ranks at a random step, go on with 1, 2 or 4 ranks and 0 or 2 workers.

    PEERS_PYTHON=... python -m benchmarks.resume [FOLDER]

For each loader: samples of the epoch that came twice, that never came, whether the global batches are those of an
undisturbed run of the same kind, and the time to the first batch at 5 % and at 95 % of the epoch. FOLDER is that of
`benchmarks.loading`. Ranks take turns in one process: no loader here talks between ranks.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loaders import SIDES, title
from benchmarks.loading import prepare

BATCH, RANKS, WORKERS = 40, 2, 2
TIMED = 5


def main() -> None:
    """One process for each loader."""
    root = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="loading-"))
    prepare(root, 3000)
    for name in SIDES:
        python = sys.executable if name == "ours" else os.environ.get("PEERS_PYTHON", sys.executable)
        program = "from benchmarks.resume import side; import sys; side(*sys.argv[1:])"
        done = subprocess.run([python, "-c", program, name, str(root)], capture_output=True, text=True, check=False)
        print(f"\n{title(name)}", flush=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for row in rows:
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
        if done.returncode:
            print("  failed:", done.stderr.strip().splitlines()[-1:])


def side(name: str, root: str) -> None:
    """All cells of one loader."""
    total = num_pictures(root)
    whole, _ = served(name, root, RANKS, WORKERS, None, None)
    at = random.Random(7).randrange(10, total // BATCH - 10)
    begun, states = served(name, root, RANKS, WORKERS, None, at)
    for world in (1, 2, 4):
        for workers in (0, 2):
            row: dict[str, Any] = {"ranks": world, "workers": workers}
            try:
                rest, _ = served(name, root, world, workers, states, None)
                counts = Counter(key for step in begun + rest for key in step)
                row |= {"twice": sum(n - 1 for n in counts.values() if n > 1), "missing": total - len(counts)}
                order = [sorted(step) for step in begun + rest] == [sorted(step) for step in whole]
                row |= {"same_batches": order}
            except Exception as error:  # a refusal is a result
                row |= {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"}
            print(json.dumps(row), flush=True)
    print(json.dumps(first_batches(name, root, total)), flush=True)


def served(
    name: str, root: str, world: int, workers: int, states: Any, num_steps: int | None
) -> tuple[list[list[str]], list[Any]]:
    """(keys of each global batch until the end of the epoch or for some steps, the state of each rank there)."""
    ranks, found = [], []
    for rank in range(world):
        state = None if states is None else states[rank % len(states)]
        opened = SIDES[name](Path(root), True, rank, world, workers, BATCH, state)
        endless = num_steps is None and name == "ours"
        limit = (num_pictures(root) - opened.seen) // BATCH if endless else num_steps
        ranks.append([[key for key, _ in rows] for rows in islice(opened.batches(), limit)])
        found.append(opened.state())
        opened.close()
    longest = max(len(steps) for steps in ranks)
    return [[key for steps in ranks if i < len(steps) for key in steps[i]] for i in range(longest)], found


def num_pictures(root: str) -> int:
    """Samples of an epoch."""
    return len(list(Path(root, "pictures").glob("*.jpg")))


def first_batches(name: str, root: str, total: int) -> dict[str, Any]:
    """Milliseconds from opening to the first batch, decoded, at 5 % and 95 % of the epoch: one rank, no workers."""
    states = {}
    for share in (5, 95):
        _, found = served(name, root, 1, 0, None, total * share // 100 // BATCH)
        states[share] = found[0]
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

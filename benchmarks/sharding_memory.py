"""How much memory the sharding of many small pictures takes while it goes on: `python -m benchmarks.sharding_memory`.

Prints the proportional set size of parent and workers (what they share counts once) at each tenth of the work.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import simplejpeg

NUM_PICTURES, SIDE = 100_000, 48


def main() -> None:
    """Make the pictures, shard them, watch."""
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in", Path(name) / "out"
        rng = np.random.default_rng(0)
        for number in range(NUM_PICTURES):
            folder = source / f"{number // 1000:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=85))
            (folder / f"{number}.txt").write_text(f"picture number {number}")
        command = [sys.executable, "-m", "data_tools", "shard", str(source), "--out", str(out), "--size", "32"]
        started = time.monotonic()
        process = subprocess.Popen([*command, "--num-workers", "2"])
        watch(process, out)
        print(f"{NUM_PICTURES} pictures in {time.monotonic() - started:.0f} s, exit code {process.returncode}")


def watch(process: subprocess.Popen[bytes], out: Path) -> None:
    """One line for each tenth of the shards."""
    told = -1
    while process.poll() is None:
        tenth = 10 * len(list(out.glob("*_stats.json"))) // (NUM_PICTURES // 1000) if out.exists() else 0
        if tenth > told:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            sizes = [f"{member.memory_full_info().pss / 2**20:.0f}" for member in family]
            print(f"{10 * tenth:>3} %: MiB of parent and children: {', '.join(sizes)}", flush=True)
            told = tenth
        time.sleep(0.2)


if __name__ == "__main__":
    main()

"""The race of loaders: raw bytes, and decode + crop + collate at 256 pixels; CPU time of the whole process tree.

    PEERS_PYTHON=... python -m benchmarks.loading [FOLDER] [NUM] [ROUNDS]

`PEERS_PYTHON` is an interpreter in which the peers are installed beside the project's own requirements; FOLDER keeps
the pictures for the next time. Rounds are interleaved; each side of a round is a process of its own, with two workers.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median

import psutil

from benchmarks.loaders import SIDE, SIDES, title

BATCH, WORKERS = 32, 2
PROGRAM = "from benchmarks.loading import side; import sys; side(*sys.argv[1:])"


def main() -> None:
    """All rounds, then a table."""
    words = sys.argv[1:]
    root = Path(words[0] if words else tempfile.mkdtemp(prefix="loading-"))
    num, rounds = (int(word) for word in [*words[1:], "3000", "5"][:2])
    prepare(root, num)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        names = list(SIDES) if number % 2 else list(reversed(SIDES))
        for name in names:
            for mode, row in run_side(name, root, num).items():
                found.setdefault((mode, name), []).append(row)
                print(f"round {number}, {name}, {mode}: {json.dumps(row)}", flush=True)
    for mode in ("raw", "pixels"):
        print(f"\n{mode}: medians of {rounds} rounds; batch {BATCH}, {WORKERS} workers, {num} pictures", flush=True)
        for name in SIDES:
            if rows := found.get((mode, name)):
                speed, cpu = (median(row[key] for row in rows) for key in ("samples_per_second", "cpu_per_1000"))
                print(f"  {title(name):<28} {speed:9.0f} samples/s {cpu:8.2f} CPU s per 1,000")


def prepare(root: Path, num: int) -> None:
    """The same JPEGs as our shards, as MDS and as litData chunks."""
    if (root / "done").exists():
        return
    import cv2

    from benchmarks.photos import write_photos

    pictures = root / "pictures"
    for path in write_photos(pictures, num, SIDE + SIDE // 4):
        cv2.imwrite(str(path), cv2.imread(str(path))[:SIDE], [cv2.IMWRITE_JPEG_QUALITY, 90])
    per_shard = -(-num // (12 * 256)) * 256  # twelve shards or one less, of whole blocks
    shard = ["shard", str(pictures), "--out", str(root / "shards"), "--samples-per-shard", str(per_shard)]
    subprocess.run([sys.executable, "-m", "data_tools", *shard], check=True, stdout=subprocess.DEVNULL)
    program = "from benchmarks.loading import convert; import sys; convert(sys.argv[1])"
    subprocess.run([os.environ["PEERS_PYTHON"], "-c", program, str(root)], check=True)
    (root / "done").touch()


def convert(root: str) -> None:
    """The peers' own formats, of 64 MB chunks at most as they default to, from our shards in their order."""
    from pipeline.data.tar import parse_samples
    from pipeline.torchvision_shim import declare_missing_operators

    declare_missing_operators()
    rows = [
        {"key": sample.key, "jpg": sample.members["jpg"]}
        for path in sorted(Path(root, "shards").glob("*.tar"))
        for sample in parse_samples(path.read_bytes())
    ]
    with import_module("streaming").MDSWriter(
        out=f"{root}/mds", columns={"key": "str", "jpg": "bytes"}, size_limit=1 << 23
    ) as writer:
        for row in rows:
            writer.write(row)
    files = [str(path) for path in sorted(Path(root, "shards").glob("*.tar"))]
    import_module("litdata").optimize(
        _samples_of, files, f"{root}/lit", chunk_bytes="8MB", num_workers=1, verbose=False
    )


def _samples_of(path: str) -> object:
    from pipeline.data.tar import parse_samples

    yield from ({"key": s.key, "jpg": s.members["jpg"]} for s in parse_samples(Path(path).read_bytes()))


def run_side(name: str, root: Path, num: int) -> dict[str, dict[str, float]]:
    """One side's round in a fresh process: its figures by mode; nothing when it fails, which is told."""
    python = sys.executable if name == "ours" else os.environ.get("PEERS_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", PROGRAM, name, str(root), str(num)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return {}
    return json.loads(done.stdout.strip().splitlines()[-1])


def side(name: str, root: str, num: str) -> None:
    """In the fresh process: one epoch in each mode, from opening on, after one batch that brings all imports."""
    found, kind = {}, SIDES[name]
    for mode in (None, "raw", "pixels"):
        cpu, start = cpu_seconds(), time.perf_counter()
        opened = kind(Path(root), mode == "raw", 0, 1, WORKERS, BATCH, None)
        count = sum(len(rows) for rows in islice(opened.batches(), int(num) // BATCH - 6 if mode else 1))
        seconds = time.perf_counter() - start
        opened.close()
        used = cpu_seconds() - cpu
        if mode:
            found[mode] = {"samples_per_second": count / seconds, "cpu_per_1000": 1000 * used / count}
    print(json.dumps(found))


def cpu_seconds() -> float:
    """Of this process and of all that it started, those that have ended too."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(each.user + each.system + each.children_user + each.children_system for each in times)


if __name__ == "__main__":
    main()

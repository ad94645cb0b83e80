"""Our sharding beside img2dataset, webdataset's ShardWriter and Ray Data: pictures for each second of CPU time.

The same photo-like pictures of 1024 px become JPEGs of 256 px: area filter, quality 95, two processes. img2dataset
wants an environment of its own (it needs older libraries): IMG2DATASET_PYTHON names its interpreter; without it its
race is left out. CPU time is that of the whole process tree, start of the interpreters included.
"""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import psutil

from benchmarks.photos import write_photos
from benchmarks.race import Result, Side, Stopwatch, race
from pipeline.data.tar import parse_samples

SIDE, SIZE, QUALITY = 1024, 256, 95
PEERS = "benchmarks.sharding_peers"
numbers = count()


def races(folder: Path, num_pictures: int = 2000, num_rounds: int = 5) -> Iterator[Result]:
    """From HTTP beside img2dataset, from disk beside the writers; the likeness of the outputs is printed."""
    photos = write_photos(folder / "photos", num_pictures, SIDE)
    python = os.environ.get("IMG2DATASET_PYTHON")
    if python:
        with serving(folder / "photos") as url:
            urls = folder / "urls.csv"
            rows = [f"{url}/{path.name},{path.with_suffix('.txt').read_text().replace(',', ' ')}" for path in photos]
            urls.write_text("\n".join(["url,caption", *rows]) + "\n")
            sides = [
                Side("ours", partial(ours, urls, folder, num_pictures)),
                Side(f"img2dataset {version_of(python)}", partial(img2dataset, python, urls, folder, num_pictures)),
            ]
            yield race("Sharding from HTTP", "pictures/CPU s", sides, num_rounds)
            print_likeness(folder, len(photos))
    else:
        print("\nSharding from HTTP: left out; IMG2DATASET_PYTHON names no interpreter with img2dataset")
    for name in ("webdataset", "ray"):
        sides = [
            Side("ours", partial(ours, folder / "photos", folder, num_pictures)),
            Side(name, partial(peer, name, folder, num_pictures)),
        ]
        yield race(f"Sharding from disk beside {name}", "pictures/CPU s", sides, num_rounds)


def ours(source: Path, folder: Path, num_pictures: int, watch: Stopwatch) -> int:
    """`tessera-data shard`."""
    out = folder / f"ours-{next(numbers)}"
    command = ["-m", "data_tools", "shard", str(source), "--out", str(out), "--size", str(SIZE), "--num-workers", "2"]
    run([sys.executable, *command], watch)
    return num_pictures


def img2dataset(python: str, urls: Path, folder: Path, num_pictures: int, watch: Stopwatch) -> int:
    """With its defaults for filter and quality, and thread_count 32 as ours."""
    out = folder / f"theirs-{next(numbers)}"
    code = (
        "from img2dataset import download\n"
        f"download(url_list={str(urls)!r}, input_format='csv', url_col='url', caption_col='caption',"
        f" output_format='webdataset', output_folder={str(out)!r}, image_size={SIZE}, resize_mode='center_crop',"
        f" encode_quality={QUALITY}, processes_count=2, thread_count=32, number_sample_per_shard=1000)\n"
    )
    script = folder / "img2dataset_run.py"
    script.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n")
    run([python, str(script)], watch)
    return num_pictures


def peer(name: str, folder: Path, num_pictures: int, watch: Stopwatch) -> int:
    """One of `benchmarks.sharding_peers`."""
    out = folder / f"{name}-{next(numbers)}"
    run([sys.executable, "-m", PEERS, name, str(folder / "photos"), str(out)], watch)
    return num_pictures


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


def print_likeness(folder: Path, num_pictures: int) -> None:
    """PSNR between the two outputs, picture by picture, by caption."""
    mine = samples_of(min(folder.glob("ours-*")))
    theirs = samples_of(min(folder.glob("theirs-*")))
    assert len(mine) == len(theirs) == num_pictures, (len(mine), len(theirs), num_pictures)
    values = [psnr(mine[caption], theirs[caption]) for caption in sorted(mine)[:500]]
    print(f"\nPSNR between the outputs: median {np.median(values):.1f} dB, least {min(values):.1f} dB")
    reference = [exact(folder, caption) for caption in sorted(mine)[:200]]
    for name, samples in (("ours", mine), ("img2dataset", theirs)):
        against = [
            psnr(samples[caption], wanted) for caption, wanted in zip(sorted(mine)[:200], reference, strict=True)
        ]
        print(f"PSNR against float area means of the full decode: {name} median {np.median(against):.2f} dB")


def samples_of(folder: Path) -> dict[str, np.ndarray]:
    """Caption without commas -> pixels, blue first."""
    found = {}
    for path in folder.glob("*.tar"):
        for sample in parse_samples(path.read_bytes()):
            pixels = cv2.imdecode(np.frombuffer(sample.members["jpg"], np.uint8), cv2.IMREAD_COLOR)
            found[sample.members["txt"].decode().replace(",", " ")] = pixels
    return found


def exact(folder: Path, caption: str) -> np.ndarray:
    """The means of 4 x 4 pixels in floating point."""
    path = folder / "photos" / f"{int(caption.split()[2]):05d}.jpg"
    factor = SIDE // SIZE
    full = cv2.imread(str(path)).astype(np.float64)
    return full.reshape(SIZE, factor, SIZE, factor, 3).mean(axis=(1, 3))


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """dB."""
    return 10 * np.log10(255**2 / np.square(found.astype(float) - wanted).mean())


def version_of(python: str) -> str:
    """Of img2dataset in that environment."""
    code = "from importlib.metadata import version; print(version('img2dataset'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of files in a process of its own, whose CPU time counts for nobody."""
    process = subprocess.Popen([sys.executable, "-m", PEERS, "serve", str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()

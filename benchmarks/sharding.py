"""Our sharding beside img2dataset, webdataset's ShardWriter and Ray Data: pictures for each second of CPU time.

The same photo-like pictures of 1024 px become JPEGs of 256 px: area filter, quality 95, two processes, shards of 1000.
CPU time is that of the whole process tree, start of the interpreters included. img2dataset needs older libraries, so it
wants an environment of its own, whose interpreter IMG2DATASET_PYTHON names; without it its two races are left out:

    python3 -m venv img2dataset && img2dataset/bin/pip install img2dataset==1.47.0
    IMG2DATASET_PYTHON=img2dataset/bin/python python -m benchmarks.sharding
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.cpu_time import run
from benchmarks.likeness import print_likeness
from benchmarks.photos import write_photos
from benchmarks.race import Result, Side, Stopwatch, race

SIDE, SIZE, QUALITY = 1024, 256, 95
NUM_PICTURES = 2000
PEERS = "benchmarks.sharding_peers"
numbers = count()


def main() -> None:
    """These races alone."""
    with tempfile.TemporaryDirectory() as folder:
        for result in races(Path(folder) / "sharding", num_rounds=3):
            print(f"\n{result}", flush=True)


def races(folder: Path, num_pictures: int = NUM_PICTURES, num_rounds: int = 5) -> Iterator[Result]:
    """From HTTP and from files beside img2dataset, from disk beside the writers; the likeness of outputs is printed."""
    photos = write_photos(folder / "photos", num_pictures, SIDE)
    if python := os.environ.get("IMG2DATASET_PYTHON"):
        yield from img2dataset_races(folder, photos, python, num_rounds)
    else:
        print("\nSharding beside img2dataset: left out; IMG2DATASET_PYTHON names no interpreter that has it")
    for name in ("webdataset", "ray"):
        sides = [
            Side("ours", partial(ours, folder / "photos", folder, num_pictures)),
            Side(name, partial(peer, name, folder, num_pictures)),
        ]
        yield race(f"Sharding from disk beside {name}", "pictures/CPU s", sides, num_rounds)


def img2dataset_races(folder: Path, photos: Sequence[Path], python: str, num_rounds: int) -> Iterator[Result]:
    """The same list of URLs for both: of a server on loopback, then of files, where nobody pays for HTTP."""
    with serving(folder / "photos") as server:
        for title, url in (("HTTP", server), ("files", f"file://{folder}/photos")):
            urls = write_urls(folder / f"{title}.csv", url, photos)
            sides = [
                Side("ours", partial(ours, urls, folder, len(photos))),
                Side(f"img2dataset {version_of(python)}", partial(img2dataset, python, urls, folder, len(photos))),
            ]
            yield race(f"Sharding from {title}", "pictures/CPU s", sides, num_rounds)
    print_likeness(folder, photos, SIZE)


def write_urls(table: Path, url: str, photos: Sequence[Path]) -> Path:
    """A table of URLs and captions."""
    rows = [f"{url}/{path.name},{path.with_suffix('.txt').read_text().replace(',', ' ')}" for path in photos]
    table.write_text("\n".join(["url,caption", *rows]) + "\n")
    return table


def ours(source: Path, folder: Path, num_pictures: int, watch: Stopwatch) -> int:
    """`tessera-data shard`."""
    out = folder / f"ours-{next(numbers)}"
    command = ["-m", "data_tools", "shard", str(source), "--out", str(out), "--size", str(SIZE), "--num-workers", "2"]
    run([sys.executable, *command], watch)
    return num_pictures


def img2dataset(python: str, urls: Path, folder: Path, num_pictures: int, watch: Stopwatch) -> int:
    """With its defaults for the filter, and as many threads in a process as ours."""
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


if __name__ == "__main__":
    main()

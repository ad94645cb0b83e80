"""What others' code looks like that does the work of `tessera-data shard`, and the server of the races.

Run by `benchmarks.sharding` as processes of their own: `python -m benchmarks.sharding_peers NAME FOLDER OUT`.
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

SIZE, QUALITY = 256, 95


def smaller(data: bytes) -> bytes:
    """Decode, area filter, encode, by OpenCV as img2dataset does it."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    picture = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def sample_of(path: str) -> dict[str, bytes | str]:
    """One row of a shard."""
    file = Path(path)
    return {"__key__": file.stem, "jpg": smaller(file.read_bytes()), "txt": file.with_suffix(".txt").read_bytes()}


def with_webdataset(folder: Path, out: Path) -> None:
    """ShardWriter in one process, the pictures made by a pool of two."""
    import multiprocessing

    import webdataset

    out.mkdir()
    paths = sorted(map(str, folder.glob("*.jpg")))
    with (
        multiprocessing.get_context("spawn").Pool(2) as pool,
        webdataset.ShardWriter(f"{out}/%05d.tar", maxcount=1000, verbose=0) as writer,
    ):
        for sample in pool.imap(sample_of, paths, chunksize=16):
            writer.write(sample)
        pool.close()
        pool.join()


def with_ray(folder: Path, out: Path) -> None:
    """Ray Data: a dataset of paths, a map, write_webdataset."""
    import ray

    ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    paths = sorted(map(str, folder.glob("*.jpg")))
    dataset = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=-(-len(paths) // 1000))
    dataset.map(lambda row: sample_of(row["path"])).write_webdataset(str(out), encoder=None)


class Quiet(SimpleHTTPRequestHandler):
    """Keeps connections open and says nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def serve(folder: Path) -> None:
    """Files of a folder on a free port, whose URL is printed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def main() -> None:
    """One of the above, by name."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    if name == "serve":
        serve(folder)
    else:
        {"webdataset": with_webdataset, "ray": with_ray}[name](folder, Path(sys.argv[3]))


if __name__ == "__main__":
    main()

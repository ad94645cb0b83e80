"""The race of loaders from an S3 server on the loopback, each request 30 ms on its way.

    PEERS_PYTHON=... python -m benchmarks.loading_s3 [FOLDER] [NUM] [ROUNDS]

FOLDER is as that of `benchmarks.loading`. The server is OpenStack Swift with memcached (Debian's package), as installed
ones have; their CPU time does not count. webdataset reads through curl, as its documentation has it; the
other peers keep copies on disk and are not raced here.
"""

import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import boto3

from benchmarks.loaders import title
from benchmarks.loading import prepare, run_side
from pipeline import storage
from tests.faulty_proxy import FaultyProxy
from tests.ranks import free_port
from tests.s3_server import start

NAMES = ("ours", "webdataset")
BUCKET = "race"


def main() -> None:
    """Upload, all rounds, a table."""
    root = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp(prefix="loading-"))
    wanted = int(sys.argv[2]) if sys.argv[2:] else 12000
    rounds = int(sys.argv[3]) if sys.argv[3:] else 5
    prepare(root, wanted)
    num = len(list((root / "pictures").glob("*.jpg")))
    with tempfile.TemporaryDirectory() as folder, memcached() as cache:
        server = start(Path(folder), cache)
        try:
            with FaultyProxy(server.ports["proxy"], delay_seconds=0.03) as proxy:
                os.environ |= server.environment() | {"AWS_ENDPOINT_URL_S3": proxy.url}
                os.environ |= upload(root / "shards")
                report([(name, run_side(name, root, num)) for _ in range(rounds) for name in NAMES], rounds)
        finally:
            server.stop()


@contextmanager
def memcached() -> Iterator[str]:
    """One of its own; its host and port."""
    port = free_port()
    with subprocess.Popen(["memcached", "-l", "127.0.0.1", "-p", str(port), "-u", getpass.getuser()]) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def upload(shards: Path) -> dict[str, str]:
    """Put the shards there; the variables by which the sides find them."""
    fs, _ = storage.filesystem(f"s3://{BUCKET}")
    fs.mkdir(BUCKET)
    fs.put(f"{shards}/", f"{BUCKET}/shards/", recursive=True)
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    keys = [f"shards/{path.name}" for path in sorted(shards.glob("*.tar"))]
    signed = [client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key}) for key in keys]
    pipes = [f"pipe:curl -s -f '{url}'" for url in signed]
    return {"LOADER_SHARDS": f"s3://{BUCKET}/shards", "LOADER_URLS": "\n".join(pipes)}


def report(found: list[tuple[str, dict[str, dict[str, float]]]], rounds: int) -> None:
    """Medians of each mode."""
    for mode in ("raw", "pixels"):
        print(f"\n{mode}, from S3 with 30 ms: medians of {rounds} rounds", flush=True)
        for name in NAMES:
            rows = [row[mode] for side, row in found if side == name and mode in row]
            if rows:
                speed, cpu = (median(row[key] for row in rows) for key in ("samples_per_second", "cpu_per_1000"))
                print(f"  {title(name):<28} {speed:9.0f} samples/s {cpu:8.2f} CPU s per 1,000")


if __name__ == "__main__":
    main()

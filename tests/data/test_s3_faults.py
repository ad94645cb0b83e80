"""The loader on a real S3 server that breaks: the same stream as from a disk, or an end with the object's name."""

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline import retry, storage
from pipeline.config import UserError
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from pipeline.data.ranged import RangedReader
from tests.data.small_shards import write_pictures
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3_server import S3Server

SIZE = (128, 128)
"""Noise of this size takes some 50 KB, so that a block is long enough to be cut in the middle."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("shards"))
    write_pictures(folder, [12, 12], SIZE)
    return folder


@pytest.fixture
def bucket(s3: S3Server, local: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same shards on the server."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    url = f"s3://test-{uuid4().hex[:12]}"
    fs = storage.filesystem(url)[0]
    fs.mkdir(url)
    fs.put(f"{local}/", f"{url}/shards/", recursive=True)
    return f"{url}/shards"


def config(url: str) -> DataConfig:
    return DataConfig(
        train=url, image_size=32, num_lanes=4, block_samples=4, num_fetch_threads=2, fetch_ahead_batches=2
    )


def stream(url: str, num_batches: int) -> list[tuple[list[str], bytes]]:
    with Loader(url, config(url), 0, batch_size=4) as loader:
        return [(batch.keys, batch.images.numpy().tobytes()) for batch in islice(loader.batches(), num_batches)]


@pytest.mark.parametrize("fault", ["503", "slow", "reset", "cut download"])
def test_a_store_in_trouble_gives_the_same_bytes(
    local: str, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    import s3fs

    with FaultyProxy(s3.ports["proxy"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with Loader(bucket, config(bucket), 0, batch_size=4) as loader:
            proxy.break_next(fault, 3)
            found = [(batch.keys, batch.images.numpy().tobytes()) for batch in islice(loader.batches(), 6)]
        assert proxy.num_met == 3
    assert found == stream(local, 6)


def test_a_store_that_stays_away_ends_the_run_with_the_object(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with FaultyProxy(s3.ports["proxy"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with Loader(bucket, config(bucket), 0, batch_size=4) as loader:
            next(loader.batches())
            proxy.break_next("503", 10**6)
            with pytest.raises(OSError, match=r"shards/0000\d.tar: the store failed 8 times, the last time with"):
                for _ in islice(loader.batches(), 30):
                    pass


def test_a_whole_object_is_one_request_and_every_thread_has_a_connection(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    with FaultyProxy(s3.ports["proxy"], delay_seconds=0.5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        assert len(storage.read_bytes(f"{bucket}/00000.tar.idx")) == 8 * 13
        assert proxy.methods == [b"GET"]
        ranged = RangedReader()
        with ThreadPoolExecutor(24) as pool:
            parts = list(pool.map(lambda n: ranged.read(f"{bucket}/00000.tar", n, n + 512), range(0, 24 * 512, 512)))
        assert b"".join(parts) == storage.read_bytes(f"{bucket}/00000.tar")[: 24 * 512]
        assert proxy.num_connections >= 20


def test_a_forked_process_reads_beside_its_parent(bucket: str) -> None:
    """Clients are opened again in a child: it neither hangs on its parent's connections nor mixes up their answers."""
    expected = stream(bucket, 4)
    with Loader(bucket, config(bucket), 0, batch_size=4) as loader:
        batches = loader.batches()
        next(batches)
        child = get_context("fork").Process(target=lambda: sys.exit(stream(bucket, 4) != expected))
        child.start()
        own = [(batch.keys, batch.images.numpy().tobytes()) for batch in islice(batches, 3)]
        child.join(60)
        assert child.exitcode == 0 and own == expected[1:]


def replace(url: str) -> None:
    """Another shard 00000.tar of exactly the same size and places, as a careless copy would put it there."""
    data = bytearray(storage.read_bytes(f"{url}/00000.tar"))
    at = data.index(b"caption 0")
    data[at : at + 9] = b"caption X"
    storage.write_bytes(f"{url}/00000.tar", bytes(data))


@pytest.mark.parametrize("where", ["s3", "disk"])
def test_a_changed_object_stops_the_run_with_its_name(bucket: str, local: str, tmp_path: Path, where: str) -> None:
    url = bucket if where == "s3" else str(tmp_path)
    if where == "disk":
        write_pictures(url, [12, 12], SIZE)
    settings = config(url).model_copy(update={"num_lanes": 1, "prefetch_batches": 1, "fetch_ahead_batches": 1})
    with Loader(url, settings, 0, batch_size=4) as loader:
        batches = loader.batches()
        list(islice(batches, 3))
        replace(url)
        with pytest.raises(UserError, match=r"00000\.tar: changed while it was being read"):
            for _ in islice(batches, 20):
                pass


def test_a_cut_off_object_is_named_at_once(bucket: str) -> None:
    data = storage.read_bytes(f"{bucket}/00001.tar")
    for length in (len(data) // 2, 600):  # in the middle of a range, and before some
        storage.write_bytes(f"{bucket}/00001.tar", data[:length])
        with pytest.raises(UserError, match=r"00001\.tar: ends before byte \d+"):
            stream(bucket, 8)
    storage.remove(f"{bucket}/00001.tar")
    with pytest.raises(UserError, match=r"00001\.tar: not found"):
        stream(bucket, 8)

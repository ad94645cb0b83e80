"""Shards on a real S3 server, through a net that breaks: the same bytes as on a disk, nothing half, nothing lost."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.commands.validate import problems_of
from data_tools.index import index_dataset
from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from data_tools.tars import RangedBuffer, sample_keys
from data_tools.validate import validate_dataset
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3_server import S3Server

CONFIG = ShardConfig(resize="none", samples_per_shard=6)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of some 50 KB."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for n in range(12):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
        (folder / f"{n:02d}.txt").write_text(f"picture {n}")
    return folder


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A new one."""
    url = f"s3://test-{uuid.uuid4().hex[:12]}"
    storage.filesystem(url)[0].mkdir(url)
    return url


def tree(url: str) -> dict[str, bytes]:
    names = [name for name in storage.list_names(url) if "." in name[1:] and not name.endswith("_stats.json")]
    return {name: storage.read_bytes(storage.join(url, name)) for name in names}


def shard(source: Path | str, out: str, num_workers: int = 1) -> dict:
    return shard_dataset(open_source(str(source)), str(source), out, CONFIG, WorkConfig(num_workers=num_workers))


def test_from_s3_to_s3_and_back(pictures: Path, bucket: str, tmp_path: Path) -> None:
    """Written there by worker processes, indexed, validated, trained on, and sharded again from there."""
    shard(pictures, str(tmp_path / "disk"))
    shard(pictures, f"{bucket}/out", num_workers=2)
    assert tree(f"{bucket}/out") == tree(str(tmp_path / "disk"))
    assert problems_of(validate_dataset(f"{bucket}/out", num_workers=1)) == []
    assert shard(pictures, f"{bucket}/out")["written_now"] == 0
    with Loader(f"{bucket}/out", DataConfig(train="", image_size=32), 0, batch_size=4) as loader:
        assert len(next(loader.batches()).keys) == 4
    summary = shard(f"{bucket}/out", str(tmp_path / "again"))
    assert (summary["samples"], summary["failed"]) == (12, 0)
    storage.filesystem(bucket)[0].put(f"{pictures}/", f"{bucket}/pictures/", recursive=True)
    shard(f"{bucket}/pictures", str(tmp_path / "from-s3"))
    assert tree(str(tmp_path / "from-s3")) == tree(str(tmp_path / "disk"))


def test_foreign_tars_are_indexed_without_their_bodies(pictures: Path, bucket: str, tmp_path: Path) -> None:
    shard(pictures, str(tmp_path / "disk"))
    tar = (tmp_path / "disk/00000.tar").read_bytes()
    storage.write_bytes(f"{bucket}/foreign/a.tar", tar)
    headers = RangedBuffer(f"{bucket}/foreign/a.tar")
    assert len(sample_keys(headers)) == 6 and headers.num_fetched < len(tar) / 3
    assert index_dataset(f"{bucket}/foreign", num_workers=2)["samples"] == 6
    assert storage.read_bytes(f"{bucket}/foreign/a.tar.idx") == (tmp_path / "disk/00000.tar.idx").read_bytes()
    assert problems_of(validate_dataset(f"{bucket}/foreign", num_workers=1)) == []


def test_a_large_object_goes_in_parts(bucket: str) -> None:
    data = np.random.default_rng(0).bytes(101 << 20)  # from 100 MiB on, s3fs uploads in parts
    with storage.writing(f"{bucket}/large") as file:
        file.write(data)
    fs, path = storage.filesystem(f"{bucket}/large")
    assert fs.info(path)["ETag"].strip('"').endswith("-3"), "an ETag of three parts"
    assert fs.cat_file(path, start=55 << 20, end=56 << 20) == data[55 << 20 : 56 << 20]


def test_wrong_keys_are_refused_in_one_line(
    pictures: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    command = ["shard", str(pictures), "--out", f"{bucket}/out", "--num-workers", "1"]
    done = subprocess.run([sys.executable, "-m", "data_tools", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "refused" in done.stderr and "check credentials" in done.stderr and "wrong" not in done.stderr


def test_a_bucket_that_is_not_there_is_told(pictures: Path, s3: S3Server) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket/out"):
        shard(pictures, "s3://no-such-bucket/out")


@pytest.mark.parametrize(("fault", "num_faults"), [("503", 2), ("cut upload", 2), ("cut download", 2), ("slow", 3)])
def test_a_net_that_breaks(
    fault: Fault, num_faults: int, pictures: Path, s3: S3Server, bucket: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every fault is met, tried again, and leaves no trace in the bytes."""
    import s3fs

    shard(pictures, str(tmp_path / "disk"))
    with FaultyProxy(s3.ports["proxy"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.break_next(fault, num_faults)
        shard(pictures, f"{bucket}/out")
        assert tree(f"{bucket}/out") == tree(str(tmp_path / "disk"))
        assert proxy.num_met == num_faults


def test_a_server_killed_in_mid_write_leaves_no_half_shard(
    pictures: Path, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """kill -9 of every server process while a shard goes there; after its start the same command ends the work."""
    shard(pictures, str(tmp_path / "disk"))
    command = ["shard", str(pictures), "--out", f"{bucket}/out", "--samples-per-shard", "6", "--num-workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "data_tools", *command], env={**os.environ, "PYTHONPATH": "."})
    while process.poll() is None and "00000.tar" not in storage.list_names(f"{bucket}/out"):
        time.sleep(0.02)
    s3.stop(signal.SIGKILL)
    s3.launch()
    process.wait(120)
    shard(pictures, f"{bucket}/out")
    assert tree(f"{bucket}/out") == tree(str(tmp_path / "disk"))

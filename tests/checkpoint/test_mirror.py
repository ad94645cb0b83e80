"""Generations copied to another place: what counts there, what a lost run folder gets back, and outages."""

import shutil
import threading
import time
import uuid
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.checkpoint.generation import committed
from pipeline.checkpoint.mirror import Mirror
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.distributed.process import Process, start
from tests.checkpoint.saving import save_now
from tests.checkpoint.test_store import Counter, damage_flip
from tests.ranks import run_ranks
from tests.s3_server import S3Server


def save(folder: Path, url: str, value: int, keep: int = 2) -> int:
    return save_now(CheckpointStore(folder, Process(), keep, mirror=url), {"value": value}, {"counter": Counter(value)})


def restored(folder: Path, url: str) -> int | None:
    counter = Counter(-1)
    progress = CheckpointStore(folder, Process(), mirror=url).restore({"counter": counter})
    assert progress is None or counter.weight.eq(progress["value"]).all()
    return None if progress is None else int(progress["value"])


def check_round_trip(folder: Path, url: str) -> None:
    """What every kind of store has to do."""
    assert restored(folder, url) is None
    assert [save(folder, url, value) for value in (1, 2, 3)] == [1, 2, 3]
    assert Mirror(url).committed() == [3, 2], "old copies go"
    assert restored(folder, url) == 3
    shutil.rmtree(folder)  # the disk went with its machine
    assert restored(folder, url) == 3
    assert save(folder, url, 4) == 4 and restored(folder, url) == 4
    damage_flip(folder / "gen-000004" / "rank-00000.safetensors")
    assert restored(folder, url) == 3, "the older one on disk, before the copy of the damaged one"


def test_a_folder_as_the_other_place(tmp_path: Path) -> None:
    check_round_trip(tmp_path / "disk", str(tmp_path / "mirror"))


def test_it_counts_on_the_disk_before_the_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs, as while a run is told to stop, must not cost what lies whole on the disk."""
    disk, mirror, hangs, real = tmp_path / "disk", tmp_path / "mirror", threading.Event(), Mirror.put
    monkeypatch.setattr(Mirror, "put", lambda *args: hangs.wait(60) and real(*args))
    store = CheckpointStore(disk, Process(), mirror=str(mirror))
    store.save({"value": 1}, {"counter": Counter(1)})
    assert store.commit() is not None, "does not wait for the store"
    assert [path.name for path in committed(disk)] == ["gen-000001"]
    assert not store.written and Mirror(str(mirror)).committed() == []
    hangs.set()
    while not store.written:
        time.sleep(0.001)
    assert store.commit() is None and not store.written
    store.settle()
    assert Mirror(str(mirror)).committed() == [1]
    store.save({"value": 2}, {"counter": Counter(2)})
    store.commit()
    store.save({"value": 3}, {"counter": Counter(3)})  # waits for the copy of the second
    store.commit()
    store.settle()
    assert Mirror(str(mirror)).committed() == [3, 2]


def test_snapshots_outlive_the_disk(tmp_path: Path) -> None:
    disk, mirror = tmp_path / "disk", tmp_path / "mirror"

    def save_at(samples_seen: int) -> None:
        store = CheckpointStore(disk, Process(), keep=1, keep_every_samples=20, mirror=str(mirror))
        save_now(store, {"samples_seen": samples_seen}, {"counter": Counter(1)})

    for samples_seen in (10, 20, 30, 40, 50):
        save_at(samples_seen)
    assert Mirror(str(mirror)).committed() == [5, 4, 2]
    shutil.rmtree(disk)
    (disk / ".gen-000003.partial").mkdir(parents=True)  # a fetch was killed
    CheckpointStore(disk, Process(), mirror=str(mirror)).restore({"counter": Counter(0)})
    assert [path.name for path in disk.iterdir()] == ["gen-000005"]
    save_at(60)
    save_at(70)
    assert Mirror(str(mirror)).committed() == [7, 6, 5, 4, 2], "5 is the oldest of its stretch on the new disk"


def test_a_copy_without_a_manifest_or_damaged_is_passed_over(tmp_path: Path) -> None:
    disk, mirror = tmp_path / "disk", tmp_path / "mirror"
    for value in (1, 2, 3):
        save(disk, str(mirror), value, keep=3)
    (mirror / "gen-000003/manifest.json").unlink()
    damage_flip(mirror / "gen-000002/rank-00000.safetensors")
    shutil.rmtree(disk)
    assert restored(disk, str(mirror)) == 1
    shutil.rmtree(disk)
    (mirror / "gen-000001/manifest.json").write_text("{}")
    shutil.rmtree(mirror / "gen-000002")
    with pytest.raises(UserError, match=r"gen-000001: .*manifest.json.*move this copy away"):
        restored(disk, str(mirror))


def test_an_outage_costs_the_copy_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, url = tmp_path / "disk", str(tmp_path / "mirror")
    save(disk, url, 1)
    with monkeypatch.context() as outage:
        outage.setattr(storage, "upload", lambda *args: (_ for _ in ()).throw(OSError("503")))
        assert save(disk, url, 2) == 2
    assert f"gen-000002 is not on {url}: 503" in caplog.text
    assert Mirror(url).committed() == [1] and restored(disk, url) == 2
    assert save(disk, url, 3) == 3 and Mirror(url).committed()[0] == 3


def two_ranks(disk: Path, url: str) -> int:
    process = start()
    store = CheckpointStore(disk, process, mirror=url)
    parts = {"counter": Counter(5, rank=process.rank, world_size=2)}
    save_now(store, {"value": 5}, parts)
    if process.is_main:
        shutil.rmtree(disk)
    store.restore(parts)
    return int(parts["counter"].weight.eq(5).all())


def test_ranks_copy_their_own_files(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    assert run_ranks(two_ranks, 2, tmp_path / "disk", str(mirror)) == [1, 1]
    names = sorted(path.name for path in (mirror / "gen-000001").iterdir())
    assert names == ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]


def test_a_real_s3_server(s3: S3Server, tmp_path: Path) -> None:
    bucket = f"s3://test-{uuid.uuid4().hex[:12]}"
    storage.filesystem(bucket)[0].mkdir(bucket)
    check_round_trip(tmp_path / "disk", f"{bucket}/runs/mine")

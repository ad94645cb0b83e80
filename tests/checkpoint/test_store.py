"""The save protocol under kills, damage and failures, with a small state and one process (two where ranks matter)."""

import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoint import store as store_module
from pipeline.checkpoint import writer
from pipeline.checkpoint.generation import MANIFEST, QUARANTINE, committed, folders, number_of
from pipeline.checkpoint.reader import newest_verified, read_tensors
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import UserError
from pipeline.distributed.fragments import Fragment, Reader, written_slices
from pipeline.distributed.process import Process, RankError, barrier, start
from tests.checkpoint.saving import save_now
from tests.ranks import run_ranks


class Counter:
    """A state of a weight, a whole number and a scalar, all functions of one value; `rank` writes its share."""

    def __init__(self, value: int = 0, size: int = 1000, rank: int = 0, world_size: int = 1) -> None:
        self.weight = torch.full((size,), float(value))
        self.count = torch.tensor(value)
        self.share = written_slices([size], rank, world_size)[0]

    def fragments(self) -> list[Fragment]:
        run = Fragment("weight", "param", (len(self.weight),), self.share.start, self.weight[self.share])
        return [run, Fragment("count", "buffer", (), 0, self.count.view(1))]

    def scalars(self) -> dict[str, Any]:
        return {"value": int(self.count)}

    def restore(self, reader: Reader) -> None:
        self.weight.copy_(reader.read("weight", "param", 0, len(self.weight)))
        self.count.copy_(reader.read("count", "buffer", 0, 1)[0])
        assert reader.scalars["value"] == int(self.count)


def save(folder: Path, value: int, keep: int = 2) -> int:
    return save_now(CheckpointStore(folder, Process(), keep), {"value": value}, {"counter": Counter(value)})


def restored(folder: Path) -> int | None:
    """The value that comes back, after checking that all of it does."""
    counter = Counter(-1)
    progress = CheckpointStore(folder, Process()).restore({"counter": counter})
    if progress is None:
        return None
    assert counter.weight.eq(progress["value"]).all() and int(counter.count) == progress["value"]
    return int(progress["value"])


def test_nothing_there(tmp_path: Path) -> None:
    assert restored(tmp_path / "absent") is None


def test_round_trip_and_retention(tmp_path: Path) -> None:
    assert [save(tmp_path, value) for value in (10, 20, 30)] == [1, 2, 3]
    assert [number_of(path) for path in committed(tmp_path)] == [3, 2]
    assert restored(tmp_path) == 30


def test_random_state_returns(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save(tmp_path, 1)
    expected = torch.rand(4)
    assert restored(tmp_path) == 1
    assert torch.equal(torch.rand(4), expected)


class Killer:
    """Kills the process at the n-th call that changes the file system, before or after the call."""

    CALLS = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir", "open")

    def __init__(self, at: int, after: bool) -> None:
        self.at, self.after, self.calls = at, after, 0

    def install(self) -> None:
        for name in self.CALLS:
            setattr(os, name, self.wrap(getattr(os, name)))
        writer.save_file = self.wrap(writer.save_file)

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if self.calls == self.at and self.after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return killing


def save_killed(folder: Path, value: int, killer: Killer) -> bool:
    """Save in a forked process with the killer in it; True when the save ended before the killer struck."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # the parent's pool of threads is not in this process
        killer.install()
        save(folder, value, keep=1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_call_of_a_save(tmp_path: Path, after: bool) -> None:
    """With keep=1 the most dangerous: at every moment one whole generation, old or new, is there."""
    start_from = tmp_path / "start"
    save(start_from, 1)
    (start_from / "gen-000007").mkdir()  # what an earlier kill left behind
    outcomes = []
    for at in range(1, 200):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(start_from, folder)
        done = save_killed(folder, 2, Killer(at, after))
        value = restored(folder)
        outcomes.append(value)
        assert save(folder, 3, keep=1) > 7 and restored(folder) == 3
        assert [path.name for path in folder.iterdir()] == [committed(folder)[0].name]
        if done:
            break
    assert done and value == 2
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2}, outcomes
    assert len(outcomes) > 20  # as many points as a save has


def damage_truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_remove(path: Path) -> None:
    path.unlink()


DAMAGES = [damage_truncate, damage_empty, damage_flip, damage_remove]


@pytest.mark.parametrize("name", ["rank-00000.safetensors", MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_falls_back(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1), save(tmp_path, 2)
    damage(tmp_path / "gen-000002" / name)
    assert read_tensors(tmp_path, "counter", "param")["weight"].eq(1).all()
    assert restored(tmp_path) == 1
    if (name, damage) != (MANIFEST, damage_remove):  # without a manifest it is unfinished, not damaged
        assert (tmp_path / QUARANTINE / "gen-000002").is_dir()
        assert "gen-000002" in caplog.text
    assert save(tmp_path, 3) >= 2 and restored(tmp_path) == 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_every_flipped_byte_is_found(place: int, mask: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, 1)
        path = [*(folder / "gen-000001").iterdir()][place % 2]
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= mask
        path.write_bytes(data)
        generation = newest_verified(folder)  # a flip in the blanks of the JSON changes nothing that counts
        assert generation is None or (generation.progress == {"value": 1} and path.name == MANIFEST)


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damage_flip(tmp_path / "gen-000001" / "rank-00000.safetensors")
    for _ in range(2):  # also when it is tried again
        with pytest.raises(UserError, match="no good one is left"):
            restored(tmp_path)


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    save(tmp_path, 1), save(tmp_path, 2)
    damage_flip(tmp_path / "gen-000002" / "rank-00000.safetensors")
    restored(tmp_path)
    assert save(tmp_path, 3) == 3


def test_retention_counts_only_whole_generations(tmp_path: Path) -> None:
    save(tmp_path, 1, keep=1)
    (tmp_path / "gen-000005").mkdir()
    assert restored(tmp_path) == 1
    assert save(tmp_path, 2, keep=1) == 6
    assert [path.name for path in folders(tmp_path)] == ["gen-000006"]


def test_a_failed_write_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([OSError(28, "No space left on device"), OSError(5, "Input/output error"), None])
    real = writer.save_file

    def flaky(*args: Any) -> None:
        if (error := next(failures)) is not None:
            raise error
        real(*args)

    monkeypatch.setattr(writer, "save_file", flaky)
    monkeypatch.setattr(writer.time, "sleep", lambda seconds: None)
    assert save(tmp_path, 1) == 1 and restored(tmp_path) == 1


def test_a_full_disk_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    tried = []
    monkeypatch.setattr(writer.time, "sleep", tried.append)
    monkeypatch.setattr(Counter, "__init__", partialmethod(Counter.__init__, size=100_000))
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    monkeypatch.undo()
    assert tried == list(writer.RETRY_SECONDS)
    assert restored(tmp_path) == 1
    assert save(tmp_path, 3) > 1 and restored(tmp_path) == 3


def test_another_model_is_refused_before_anything_changes(tmp_path: Path) -> None:
    save(tmp_path, 4)
    other = Counter(9, size=999)
    with pytest.raises(UserError, match=r"counter.weight is of shape \(1000,\), the config makes it \(999,\)"):
        CheckpointStore(tmp_path, Process()).restore({"counter": other})
    assert other.weight.eq(9).all()
    with pytest.raises(UserError, match="no part 'critic'"):
        CheckpointStore(tmp_path, Process()).restore({"critic": other})


def test_pruned_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1), save(tmp_path, 2)
    real = store_module.Generation.verify

    def pruned(self: Any, files: Any = None) -> None:
        if self.number == 2:
            shutil.rmtree(self.path)
        real(self, files)

    monkeypatch.setattr(store_module.Generation, "verify", pruned)
    generation = newest_verified(tmp_path)
    assert generation is not None and generation.number == 1


class Broken(Counter):
    """Cannot be written."""

    def fragments(self) -> list[Fragment]:
        raise RuntimeError("broken fragment")


def two_ranks(folder: Path) -> dict[str, Any]:
    """Everything that needs a second rank, in one world."""
    process = start()
    rank, results = process.rank, {}
    store = CheckpointStore(folder, process)

    def parts(value: int) -> Mapping[str, Counter]:
        return {"counter": Counter(value, rank=rank, world_size=2)}

    save_now(store, {"value": 1}, parts(1))
    begin = time.monotonic()
    try:
        save_now(store, {"value": 2}, {"counter": Broken()} if rank == 1 else parts(2))
    except RankError as error:
        results["one rank fails"] = f"{error}"
    results["seconds"] = time.monotonic() - begin
    try:
        save_now(CheckpointStore(folder / "file" if rank == 0 else folder, process), {}, parts(2))
    except RankError as error:
        results["main rank fails"] = f"{error}"
    save_now(store, {"value": 3}, parts(3))
    if rank == 0:
        damage_flip(committed(folder)[0] / "rank-00001.safetensors")
    counter = Counter(-1)
    results["fallback"] = store.restore({"counter": counter})
    results["whole"] = bool(counter.weight.eq(1).all())
    barrier()  # nobody reads the generation that is damaged next
    if rank == 1:
        damage_flip(committed(folder)[0] / "rank-00000.safetensors")
    try:
        store.restore({"counter": counter})
    except UserError as error:
        results["none left"] = f"{error}"
    return results


def test_ranks_fail_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for results in run_ranks(two_ranks, 2, tmp_path):
        assert results["one rank fails"] == "rank 1: RuntimeError('broken fragment')"
        assert "rank 0: " in results["main rank fails"]
        assert results["seconds"] < 30
        assert results["fallback"] == {"value": 1} and results["whole"]
        assert "no good one is left" in results["none left"]


def killed_rank(folder: Path, victim: int) -> str:
    process = start()
    store = CheckpointStore(folder, process)
    save_now(store, {"value": 1}, {"counter": Counter(1, rank=process.rank, world_size=2)})
    try:
        if process.rank == victim:
            Killer(2, after=True).install()
        save_now(store, {"value": 2}, {"counter": Counter(2, rank=process.rank, world_size=2)})
    except Exception as error:
        return f"survivor: {type(error).__name__}"
    return "saved"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others(tmp_path: Path, victim: int) -> None:
    with pytest.raises(AssertionError, match=f"rank {victim} died"):
        run_ranks(killed_rank, 2, tmp_path, victim)
    assert restored(tmp_path) == 1

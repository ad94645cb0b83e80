"""A save that goes on beside the steps: what it holds, when it counts, and how its failure is told."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint import store as store_module
from pipeline.checkpoint import writer
from pipeline.checkpoint.generation import committed
from pipeline.checkpoint.store import CheckpointStore
from pipeline.distributed.process import Process, RankError, any_rank, start
from tests.checkpoint.saving import save_now
from tests.checkpoint.test_store import Counter, restored
from tests.ranks import run_ranks


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds every write back until it is set."""
    event, real = threading.Event(), store_module.write_rank_file

    def held(*args: Any) -> Any:
        assert event.wait(timeout=60)
        return real(*args)

    monkeypatch.setattr(store_module, "write_rank_file", held)
    return event


def test_a_save_holds_the_moment_at_which_it_began(tmp_path: Path, gate: threading.Event) -> None:
    store, counter = CheckpointStore(tmp_path, Process()), Counter(7)
    torch.manual_seed(1)
    store.save({"value": 7}, {"counter": counter})
    expected = torch.rand(2)
    counter.weight.fill_(8)  # the next step
    counter.count.fill_(8)
    assert not store.written and not committed(tmp_path)
    gate.set()
    done = store.commit()
    assert done is not None and done.progress == {"value": 7} and done.stall_seconds > 0
    assert restored(tmp_path) == 7
    assert torch.equal(torch.rand(2), expected), "the random state is that of the moment as well"


def test_it_counts_only_after_the_commit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Process())
    assert store.commit() is None and not store.written
    store.save({"value": 1}, {"counter": Counter(1)})
    while not store.written:
        time.sleep(0.001)
    assert restored(tmp_path) is None, "written by all, and not agreed yet"
    with pytest.raises(AssertionError, match="commit the save before"):
        store.save({"value": 2}, {"counter": Counter(2)})
    assert store.commit() is not None and store.commit() is None
    assert restored(tmp_path) == 1


def test_buffers_are_used_again_and_follow_the_state(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Process())
    assert store.restore({"counter": Counter(0)}) is None
    for value, size in ((1, 1000), (2, 1000), (3, 10)):
        save_now(store, {"value": value}, {"counter": Counter(value, size)})
        counter = Counter(-1, size)
        assert store.restore({"counter": counter}) == {"value": value}
        assert counter.weight.eq(value).all()


def test_a_write_that_fails_is_told_at_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "RETRY_SECONDS", ())
    monkeypatch.setattr(writer, "save_file", broken)
    store = CheckpointStore(tmp_path, Process())
    store.save({"value": 1}, {"counter": Counter(1)})
    with pytest.raises(OSError, match="No space left"):
        store.commit()
    monkeypatch.undo()
    assert save_now(store, {"value": 2}, {"counter": Counter(2)}) == 2 and restored(tmp_path) == 2


def uneven_ranks(folder: Path) -> list[Any]:
    """Rank 1 writes late; then its disk is full."""
    process = start()
    store, real, held = CheckpointStore(folder, process), store_module.write_rank_file, threading.Event()
    if process.rank == 1:
        store_module.write_rank_file = lambda *args: held.wait(60) and real(*args)  # type: ignore[assignment]
    parts = {"counter": Counter(1, rank=process.rank, world_size=2)}
    store.save({"value": 1}, parts)
    if process.rank == 0:
        while not store.written:
            time.sleep(0.001)
    seen: list[Any] = [any_rank(store.written), any_rank(not store.written)]
    held.set()
    done = store.commit()
    seen.append(done.number if done else None)
    if process.rank == 1:
        writer.save_file = lambda *args: (_ for _ in ()).throw(OSError("full"))  # type: ignore[assignment]
        writer.RETRY_SECONDS = ()  # type: ignore[assignment]
    store.save({"value": 2}, parts)
    try:
        store.commit()
    except RankError as error:
        seen.append(str(error))
    return seen


def test_ranks_commit_and_fail_together(tmp_path: Path) -> None:
    for seen in run_ranks(uneven_ranks, 2, tmp_path):
        assert seen == [True, True, 1, "rank 1: OSError('full')"]
    assert restored(tmp_path) == 1

"""Ranks that stop, hang or die, as processes without torch: who is named, and that all end within the bound."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.distributed.fault import Seen, find_late
from pipeline.distributed.watchdog import VERDICT
from tests.launch.disturbed import processes
from tests.runs import drawn_shards, losses
from tests.runs import start as launch
from tests.source import ROOT

HANG_SECONDS = 2.0
RANK = """
import os, sys, time
from pathlib import Path
from pipeline.distributed.beacon import BEACON
from pipeline.distributed.watchdog import watching
folder, rank, fate = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def holds_up_the_others():
    time.sleep(600)

with watching(folder, rank, 2, float(sys.argv[4])):
    for step in range(4):
        BEACON.note("data", step)
        BEACON.shard = f"s3://bucket/0000{rank}.tar"
        if step == 3 and fate == "hangs": holds_up_the_others()
        BEACON.note("step")
        time.sleep(0.2)
    if fate == "waits": time.sleep(600)   # in a collective
    if fate == "validates": BEACON.note("validation"); time.sleep(3)
"""


def start(folder: Path, fates: list[str]) -> list[subprocess.Popen[str]]:
    words = [[sys.executable, "-c", RANK, str(folder), str(r), fate, str(HANG_SECONDS)] for r, fate in enumerate(fates)]
    return [subprocess.Popen(w, cwd=ROOT, text=True, stderr=subprocess.PIPE) for w in words]


def end(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """What each said; none may outlive the bound."""
    deadline = time.monotonic() + 10 * HANG_SECONDS
    said = [rank.communicate(timeout=max(deadline - time.monotonic(), 0.1))[1] for rank in ranks]
    assert all(rank.returncode is not None for rank in ranks)
    return said


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_hangs_in_its_data_is_named_with_shard_and_stack(tmp_path: Path, culprit: int) -> None:
    ranks = start(tmp_path, ["hangs" if r == culprit else "waits" for r in range(2)])
    said = end(ranks)
    assert [rank.returncode for rank in ranks] == [1, 1]
    wanted = f"step 3, data, s3://bucket/0000{culprit}.tar) holds up the others, no step for 2 s"
    assert all(f"rank {culprit} on " in text and wanted in text for text in said)
    assert "holds_up_the_others" in said[culprit], "the stack of the rank itself"


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_stopped_process_is_named_and_ended_by_its_neighbour(tmp_path: Path, culprit: int) -> None:
    ranks = start(tmp_path, ["waits", "waits"])
    while not all((tmp_path / f"rank-0000{r}.json").exists() for r in range(2)):
        time.sleep(0.05)
    os.kill(ranks[culprit].pid, signal.SIGSTOP)
    said = end(ranks)
    assert ranks[1 - culprit].returncode == 1 and ranks[culprit].returncode == -signal.SIGKILL
    assert f"rank {culprit} on " in said[1 - culprit] and "s (stopped): its process is dead" in said[1 - culprit]


def test_a_killed_process_is_named(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["waits", "waits"])
    while not (tmp_path / "rank-00001.json").exists():
        time.sleep(0.05)
    ranks[1].kill()
    said = end(ranks)
    assert ranks[0].returncode == 1 and "rank 1 on " in said[0] and "is silent" in said[0]


def test_an_end_and_a_long_validation_are_no_faults(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["ends", "validates"])
    end(ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert not (tmp_path / VERDICT).exists()


def test_a_job_that_is_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    ranks = start(tmp_path, ["validates", "validates"])
    beats = [tmp_path / f"rank-0000{r}.json" for r in range(2)]
    while not all(path.exists() and "validation" in path.read_text() for path in beats):
        time.sleep(0.05)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGSTOP)
    time.sleep(1.5 * HANG_SECONDS)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGCONT)
        time.sleep(0.2)  # the first looks for the others before they can speak
    assert end(ranks) == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]


def beat(rank: int, step: int, phase: str) -> dict[str, object]:
    return {"rank": rank, "host": "far", "pid": 1, "beat": 9, "step": step, "phase": phase, "shard": "00000.tar"}


def test_of_many_ranks_the_latest_are_named() -> None:
    seen = {r: Seen(beat(r, 7, "step"), heard=99.0, moved=10.0) for r in range(1024)}
    assert find_late(seen, 100.0, 60.0) == (
        "no step for 60 s; all ranks are in it alike: "
        + "; ".join(f"rank {r} on far (process 1, step 7, step)" for r in range(8)),
        [],
    )
    seen[77].beat = beat(77, 6, "checkpoint")
    assert find_late(seen, 100.0, 60.0) is None, "a checkpoint may take its time"
    seen[77].beat = beat(77, 7, "data")
    fault = find_late(seen, 100.0, 60.0)
    assert fault is not None and fault[1] == [77] and "00000.tar" in fault[0]
    seen[500].moved = 99.0
    assert find_late(seen, 100.0, 60.0) is None, "one still moves"


@pytest.mark.slow
def test_a_stopped_rank_ends_a_real_training(tmp_path: Path) -> None:
    """Under torchrun: the others wait in a collective that would last half an hour."""
    drawn_shards(tmp_path, 20)
    words = ["data.train=train", "data.validation=train", "trainer.log_every_steps=1", "trainer.total_samples=160000"]
    config = str(ROOT / "configs/autoencoder/debug.yaml")
    training = launch(
        tmp_path, "launch", "torchrun", "--nproc", "2", config, "run=hung", *words, "process.hang_seconds=5"
    )
    while not losses(tmp_path / "hung"):
        assert training.poll() is None, training.communicate()[0]
        time.sleep(0.5)
    victim = processes(tmp_path / "hung")[1]
    os.kill(victim, signal.SIGSTOP)
    said, _ = training.communicate(timeout=120)
    assert training.returncode == 1
    assert f"(process {victim}, step " in said and "is silent" in said and 'File "' in said
    assert not processes(tmp_path / "hung"), "a zombie keeps its GPU"

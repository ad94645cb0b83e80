"""The same shards on a Ray cluster, also when a worker is killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_tools.shard import ShardConfig, WorkConfig, shard_dataset
from data_tools.sources.open import open_source
from tests.source import ROOT

NUM = 600


def test_a_cluster_writes_the_same_shards_with_one_worker_killed(tmp_path: Path) -> None:
    """Two workers; the first that works on a shard is killed, and Ray gives its shard to another."""
    pytest.importorskip("ray")
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n in range(NUM):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / f"in/{n:03d}.png")
    config = ShardConfig(size=64, samples_per_shard=100)
    shard_dataset(open_source(str(tmp_path / "in")), "in", str(tmp_path / "calm"), config, WorkConfig())
    out = tmp_path / "out"
    command = ["shard", str(tmp_path / "in"), "--out", str(out), "--size", "64", "--samples-per-shard", "100"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "data_tools", *command, "--engine", "ray"], env=environment, stdout=log, stderr=log
        )
        killed = kill_a_worker(process, out)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    assert killed, "no worker was found at work"
    assert tree(out) == tree(tmp_path / "calm")


def kill_a_worker(process: subprocess.Popen[bytes], out: Path) -> bool:
    """SIGKILL the Ray worker that writes a shard (its temporary file bears its process id)."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        for path in out.glob(".*.tar.*.partial"):
            pid = int(path.name.split(".")[-2])
            if pid != process.pid and psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
                return True
        time.sleep(0.002)
    return False


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("_stats.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}

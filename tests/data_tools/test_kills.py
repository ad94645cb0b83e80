"""Twenty SIGKILLs at random moments while 5,000 pictures are sharded, and the tree of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.source import ROOT

NUM_PICTURES, NUM_KILLS = 5000, 20


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the stats, whose times differ."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("_stats.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = ["shard", str(source), "--out", str(out), "--size", "128", "--samples-per-shard", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "data_tools", *command, "--num-workers", "2"], env=environment)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(tmp_path: Path) -> None:
    """The parent with its workers, or one worker alone; each run goes on where the last was killed."""
    rng, chance = np.random.default_rng(0), random.Random(0)
    (tmp_path / "in").mkdir()
    for n in range(NUM_PICTURES):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC).save(tmp_path / f"in/{n:04d}.jpg")
        (tmp_path / f"in/{n:04d}.txt").write_text(f"picture {n}")
    assert start(tmp_path / "in", tmp_path / "calm").wait() == 0
    out, num_kills, num_done = tmp_path / "out", 0, []
    while num_kills < NUM_KILLS:
        process = start(tmp_path / "in", out)
        before = len(list(out.glob("*_stats.json"))) if out.exists() else 0
        while process.poll() is None and len(list(out.glob("*_stats.json"))) == before and before < 240:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is not None:
            break
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in family if "spawn_main" in " ".join(child.cmdline())]
        if num_kills % 4 == 3 and workers:
            chance.choice(workers).kill()  # the pool sees it, and the command says so
            assert process.wait(60) == 2
        else:
            process.send_signal(signal.SIGKILL)
            for child in family:
                if child.is_running():
                    child.kill()
            process.wait()
            psutil.wait_procs(family, timeout=30)
        num_kills += 1
        num_done.append(len(list(out.glob("*_stats.json"))))
        assert not (out / "manifest.json").exists()
    assert num_kills == NUM_KILLS and num_done == sorted(num_done), num_done
    assert start(tmp_path / "in", out).wait() == 0
    assert tree(out) == tree(tmp_path / "calm")

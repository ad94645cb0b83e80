"""Only the training's own thread may have a team of OpenMP threads: the saving and the loading threads start none.

libgomp counts the threads of all teams, and once they are more than the cores it lets every team sleep between two
operations: a training of small operations then runs at 60 % of its speed. Counted in a process of its own.
"""

import sys
from pathlib import Path

import pytest

from tests.data.small_shards import write_pictures
from tests.runs import environment, run

TEAMS = """
import os, sys, threading, torch
import cv2  # which has a thread of its own from its import on
from itertools import islice
from pathlib import Path
from pipeline.checkpoint.store import CheckpointStore
from pipeline.data.loader import DataConfig, Loader
from pipeline.distributed.process import Process
from tests.checkpoint.test_store import Counter

def num_others():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # OpenMP names none of its own
    return names.count(Path("/proc/self/comm").read_text()) - threading.active_count()

url, folder = sys.argv[1:]
assert torch.get_num_threads() == 2
torch.ones(1_000_000).mul(2.0)
num_before = num_others()
assert num_before >= 1, "the main thread's own team"
store, parts = CheckpointStore(Path(folder), Process()), {"counter": Counter(1, size=1_000_000)}
store.restore(parts)
store.settle()
store.save({}, parts)
store.commit()
store.settle()
num_saved = num_others()
config = DataConfig(train=url, image_size=128, num_lanes=4, block_samples=4)
with Loader(url, config, 0, 0, 1, batch_size=16) as loader:
    batches = loader.batches(0)
    for batch in islice(batches, 4):
        assert batch.images.numel() > 500_000
    num_loaded = num_others()
print(num_saved - num_before, num_loaded - num_before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_saving_and_loading_start_no_team_of_their_own(tmp_path: Path) -> None:
    write_pictures(str(tmp_path / "pictures"), [32], size=(128, 128))
    (tmp_path / "teams.py").write_text(TEAMS)
    variables = environment(tmp_path) | {"OMP_NUM_THREADS": "2"}
    variables["PYTHONPATH"] += f":{tmp_path}"
    said = run(tmp_path, "teams", str(tmp_path / "pictures"), str(tmp_path / "checkpoints"), variables=variables)
    assert said.split()[-2:] == ["0", "0"], said

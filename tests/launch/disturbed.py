"""A training job on a real Slurm that is hurt again and again, and what Slurm and the journal say of it.

Used by the tests of the launcher and by `benchmarks.chaos`.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.tracking.journal import read_all_events
from tests.launch.slurm_cluster import SlurmCluster
from tests.runs import ROOT, environment, run

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def words(name: str, num_steps: int) -> list[str]:
    """The debug recipe for so many steps, a number journalled for each, saved every tenth."""
    config = str(ROOT / "configs/autoencoder/debug.yaml")
    data = ["data.train=train", "data.validation=train", f"trainer.total_samples={16 * num_steps}"]
    often = ["trainer.log_every_steps=1", "trainer.checkpoint_every_samples=160", "trainer.preview_every_samples=0"]
    return [config, f"run={name}", *data, *often]


def submit(cluster: SlurmCluster, place: Path, *run_words: str) -> str:
    """`tessera-launch slurm` over two nodes; returns the number of the job."""
    slurm = ["--nodes", "2", "--nproc", "1", "--cpus-per-rank", "1", "--cpu", "--time", "30"]
    said = run(place, "launch", "slurm", *slurm, *run_words, variables=cluster.environment | environment(place))
    found = re.search(r"^job (\d+);", said, re.MULTILINE)
    assert found is not None, said
    return found[1]


def wait_for(what: str, happened: Callable[[], bool], log: Path, seconds: float = 300) -> None:
    """Return when it has happened.

    Raises:
        AssertionError: not within `seconds`; with the job's log.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"never came: {what}\n{log.read_text() if log.exists() else 'no log'}"
        time.sleep(0.1)


def processes(run_dir: Path, with_word: bytes = b"pipeline") -> list[int]:
    """Numbers of the processes that train a run on this machine: the ranks, or with `--nnodes` their torchruns."""
    config, found = str(run_dir / "launch/config.yaml").encode(), []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if config in line and with_word in line and (b"--nnodes" in line) == (with_word == b"--nnodes"):
            found.append(int(entry.parent.name))
    return found


class Disturbed:
    """One job."""

    def __init__(self, cluster: SlurmCluster, place: Path, name: str, *run_words: str) -> None:
        self.cluster, self.run = cluster, place / name
        self.number = submit(cluster, place, *run_words)
        self.log = self.run / "launch" / f"slurm-{self.number}.out"
        self.restarts = 0

    def num_commits(self) -> int:
        """In all starts, those that were taken back too."""
        return sum(event.kind == "committed" for event in read_all_events(self.run)) if self.run.exists() else 0

    def after_the_next_commit(self) -> None:
        """Return when this start has saved something."""
        before = self.num_commits()
        wait_for("a checkpoint", lambda: self.num_commits() > before and len(processes(self.run)) == 2, self.log)

    def tell(self) -> None:
        """What Slurm itself sends before the time limit: USR1 to the batch shell."""
        self._note_restarts()
        self.cluster.run("scancel", "--batch", "--signal=USR1", self.number)

    def kill_a_rank(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        self._note_restarts()
        os.kill(processes(self.run)[0], signal.SIGKILL)

    def kill_a_torchrun(self) -> None:
        """SIGKILL; its ranks have to die with it."""
        self._note_restarts()
        os.kill(processes(self.run, b"--nnodes")[0], signal.SIGKILL)

    def lose_a_node(self) -> None:
        """The second node fails with all that it runs, and comes back once Slurm has seen it."""
        self._note_restarts()
        self.cluster.lose_node("n2")
        self.restarted()
        self.cluster.start_node("n2")

    def restarted(self) -> None:
        """Return when Slurm has queued the job again since it was hurt. A node that comes back may cost one more."""
        wait_for(f"start {self.restarts + 1}", lambda: self._num_restarts() > self.restarts, self.log)

    def _note_restarts(self) -> None:
        self.restarts = self._num_restarts()

    def _num_restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def ended(self) -> str:
        """Slurm's word for how the job ended."""
        wait_for("the end", lambda: self.cluster.job(self.number)["JobState"] in OVER, self.log)
        return self.cluster.job(self.number)["JobState"]

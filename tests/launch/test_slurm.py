"""Training over two nodes of a real Slurm: told to stop, ranks and nodes killed; the numbers stay the same."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.tracking.journal import read_events
from tests.launch.slurm_cluster import SlurmCluster, missing_programs
from tests.runs import ROOT, drawn_shards, environment, losses, run

pytestmark = [
    pytest.mark.skipif(bool(missing_programs()), reason=f"no {missing_programs()}: install slurm-wlm and munge"),
    pytest.mark.timeout(1500),
]
NUM_STEPS = 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    slurm = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    yield slurm
    slurm.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a little dataset and an undisturbed run of two ranks."""
    folder = tmp_path_factory.mktemp("jobs")
    drawn_shards(folder, 90)
    run(folder, "launch", "torchrun", "--nproc", "2", *words("quiet"))
    return folder


def words(name: str) -> list[str]:
    config = str(ROOT / "configs/autoencoder/debug.yaml")
    data = ["data.train=train", "data.validation=train", f"trainer.total_samples={16 * NUM_STEPS}"]
    often = ["trainer.log_every_steps=1", "trainer.checkpoint_every_samples=160", "trainer.preview_every_samples=0"]
    return [config, f"run={name}", *data, *often]


def submit(cluster: SlurmCluster, place: Path, name: str) -> str:
    """`tessera-launch slurm` over two nodes; returns the number of the job."""
    slurm = ["--nodes", "2", "--nproc", "1", "--cpus-per-rank", "1", "--cpu", "--time", "30"]
    said = run(place, "launch", "slurm", *slurm, *words(name), variables=cluster.environment | environment(place))
    return said.split()[1].rstrip(";")


def wait_for(what: str, happened: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, f"never came: {what}\n{log.read_text() if log.exists() else 'no log'}"
        time.sleep(0.1)


def processes(place: Path, name: str, with_word: bytes = b"pipeline") -> list[int]:
    """Numbers of the processes that train a run on this machine: the ranks, or with `--nnodes` their torchruns."""
    config, found = str(place / name / "launch/config.yaml").encode(), []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if config in line and with_word in line and (b"--nnodes" in line) == (with_word == b"--nnodes"):
            found.append(int(entry.parent.name))
    return found


class Disturbed:
    """One job that is hurt again and again, and what Slurm and the journal say of it."""

    def __init__(self, cluster: SlurmCluster, place: Path, name: str) -> None:
        self.cluster, self.place, self.run = cluster, place, place / name
        self.number = submit(cluster, place, name)
        self.log = self.run / "launch" / f"slurm-{self.number}.out"

    def num_commits(self) -> int:
        return sum(event.kind == "committed" for event in read_events(self.run)) if self.run.exists() else 0

    def after_the_next_commit(self) -> None:
        """Return when this start has saved something, with most of the run still to come."""
        before = self.num_commits()
        wait_for(
            "a checkpoint",
            lambda: self.num_commits() > before and len(processes(self.place, self.run.name)) == 2,
            self.log,
        )
        assert max(losses(self.run)) < NUM_STEPS

    def restarted(self, times: int) -> None:
        wait_for(f"start {times + 1}", lambda: self.cluster.job(self.number)["Restarts"] == str(times), self.log)

    def ended(self) -> str:
        """Slurm's word for how the job ended."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for("the end", lambda: self.cluster.job(self.number)["JobState"] in over, self.log)
        return self.cluster.job(self.number)["JobState"]


def test_stopped_and_killed_under_slurm_it_gives_the_numbers_of_a_quiet_run(cluster: SlurmCluster, place: Path) -> None:
    job = Disturbed(cluster, place, "disturbed")
    job.after_the_next_commit()
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)  # what Slurm itself sends before the time limit
    job.restarted(1)
    job.after_the_next_commit()
    os.kill(processes(place, "disturbed")[0], signal.SIGKILL)
    job.restarted(2)
    assert job.ended() == "COMPLETED", job.log.read_text()
    assert losses(job.run) == losses(place / "quiet")  # floats, bit for bit
    assert sorted(losses(job.run)) == list(range(1, NUM_STEPS + 1))
    assert not processes(place, "disturbed")


@pytest.mark.slow
def test_a_killed_torchrun_and_a_lost_node_leave_the_same_numbers(cluster: SlurmCluster, place: Path) -> None:
    job = Disturbed(cluster, place, "unlucky")
    job.after_the_next_commit()
    os.kill(processes(place, "unlucky", b"--nnodes")[0], signal.SIGKILL)
    job.restarted(1)
    assert not processes(place, "unlucky", b"--nnodes"), "an orphan of torchrun"
    job.after_the_next_commit()
    cluster.lose_node("n2")
    job.restarted(2)  # Slurm does this itself when a node is gone
    cluster.start_node("n2")
    assert job.ended() == "COMPLETED", job.log.read_text()
    assert losses(job.run) == losses(place / "quiet")


def test_a_user_s_mistake_ends_the_job_at_its_first_start(cluster: SlurmCluster, place: Path) -> None:
    said = run(
        place,
        "launch",
        "slurm",
        "--nodes",
        "2",
        "--nproc",
        "1",
        "--cpus-per-rank",
        "1",
        "--cpu",
        *words("wrong"),
        "data.train=nowhere",
        variables=cluster.environment | environment(place),
    )
    number = said.split()[1].rstrip(";")
    log = place / "wrong/launch" / f"slurm-{number}.out"
    wait_for("the end", lambda: cluster.job(number)["JobState"] == "FAILED", log)
    assert cluster.job(number)["Restarts"] == "0"
    assert "nowhere" in log.read_text()

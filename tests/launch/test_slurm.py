"""Training over two nodes of a real Slurm: told to stop, ranks and nodes killed; the numbers stay the same."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.disturbed import Disturbed, processes, submit, wait_for, words
from tests.launch.slurm_cluster import SlurmCluster, missing_programs
from tests.runs import drawn_shards, losses, run

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
    run(folder, "launch", "torchrun", "--nproc", "2", *words("quiet", NUM_STEPS))
    return folder


def test_stopped_and_killed_under_slurm_it_gives_the_numbers_of_a_quiet_run(cluster: SlurmCluster, place: Path) -> None:
    job = Disturbed(cluster, place, "disturbed", *words("disturbed", NUM_STEPS))
    job.after_the_next_commit()
    job.tell()
    job.restarted()
    job.after_the_next_commit()
    assert max(losses(job.run)) < NUM_STEPS
    job.kill_a_rank()
    job.restarted()
    assert job.ended() == "COMPLETED", job.log.read_text()
    assert losses(job.run) == losses(place / "quiet")  # floats, bit for bit
    assert sorted(losses(job.run)) == list(range(1, NUM_STEPS + 1))
    assert not processes(job.run)


@pytest.mark.slow
def test_a_killed_torchrun_and_a_lost_node_leave_the_same_numbers(cluster: SlurmCluster, place: Path) -> None:
    job = Disturbed(cluster, place, "unlucky", *words("unlucky", NUM_STEPS))
    job.after_the_next_commit()
    job.kill_a_torchrun()
    job.restarted()
    assert not processes(job.run, b"--nnodes"), "an orphan of torchrun"
    job.after_the_next_commit()
    job.lose_a_node()
    job.restarted()
    assert job.ended() == "COMPLETED", job.log.read_text()
    assert losses(job.run) == losses(place / "quiet")


@pytest.mark.slow
def test_a_bad_node_is_left_out_where_there_is_another(tmp_path: Path, place: Path) -> None:
    """Whatever trains on n2 is killed before it can save: after two such starts the run goes on over n1 and n3."""
    cluster = SlurmCluster(tmp_path / "slurm", num_nodes=3)
    try:
        job = Disturbed(cluster, place, "unclean", *words("unclean", NUM_STEPS))
        log = place / "unclean/launch"

        def moved() -> bool:
            for pid in set(processes(job.run)) & set(cluster.tasks("n2")):
                os.kill(pid, signal.SIGKILL)
            return "n2 was the first to fail twice" in (job.log.read_text() if job.log.exists() else "")

        def others() -> list[str]:
            return [n for n in cluster.run("squeue", "-h", "-o", "%i").split() if n != job.number]

        wait_for("the verdict", moved, job.log)
        assert not job.num_commits(), "the starts were to be fruitless"
        wait_for("another job", lambda: bool(others()), job.log)
        job.number = others()[0]
        assert job.ended() == "COMPLETED", (log / f"slurm-{job.number}.out").read_text()
        assert cluster.job(job.number)["NodeList"] == "n[1,3]"
    finally:
        cluster.close()
    assert losses(job.run) == losses(place / "quiet")


def test_a_user_s_mistake_ends_the_job_at_its_first_start(cluster: SlurmCluster, place: Path) -> None:
    number = submit(cluster, place, *words("wrong", NUM_STEPS), "data.train=nowhere")
    log = place / "wrong/launch" / f"slurm-{number}.out"
    wait_for("the end", lambda: cluster.job(number)["JobState"] == "FAILED", log)
    assert cluster.job(number)["Restarts"] == "0"
    assert "nowhere" in log.read_text()

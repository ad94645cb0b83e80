"""The follower ends with its trainer, sends what it left, and tells a kill from an end."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.tracking.follower import LOG_NAME, Follower, _News
from pipeline.tracking.journal import Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINER = """
import os, signal, sys
from pipeline.tracking.follower import Follower
from pipeline.tracking.journal import Journal
journal = Journal(sys.argv[1])
journal.params({"seed": 1})
with Follower(sys.argv[1], patience_seconds=120) as follower:
    journal.metrics({"loss": 1.0}, 1, 1)
    journal.committed(1, 1)
    journal.metrics({"loss": 2.0}, 2, 2)
    print(follower.process.pid, flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    journal.ended("finished")
"""


def wait_until_gone(pid: int) -> None:
    import psutil

    try:
        psutil.Process(pid).wait(timeout=120)
    except psutil.NoSuchProcess:
        return


@pytest.mark.parametrize(("how", "status", "steps"), [("kill", "KILLED", 1), ("end", "FINISHED", 2)])
def test_end_of_the_trainer(client: "MlflowClient", tmp_path: Path, how: str, status: str, steps: int) -> None:
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "toy"), how]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if how == "kill" else 0)
    wait_until_gone(int(done.stdout))
    (run,) = client.search_runs([client.get_experiment_by_name("tessera").experiment_id])
    assert run.info.status == status
    assert len(client.get_metric_history(run.info.run_id, "loss")) == steps


def test_a_signal_to_the_job_does_not_end_it(client: "MlflowClient", tmp_path: Path) -> None:
    journal = Journal(tmp_path / "toy")
    journal.params({})
    with Follower(tmp_path / "toy", patience_seconds=120) as follower:
        while not (tmp_path / "toy" / "journal" / "shipped.json").is_file():
            assert follower.process.poll() is None
        follower.process.send_signal(signal.SIGTERM)
        journal.metrics({"loss": 1.0}, 1, 1)
        journal.ended("stopped")
    assert follower.process.returncode == 0
    (run,) = client.search_runs([client.get_experiment_by_name("tessera").experiment_id])
    assert run.info.status == "KILLED" and run.data.metrics["loss"] == 1.0


def test_training_does_not_notice_a_dead_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    journal = Journal(tmp_path / "toy")
    journal.params({})
    with Follower(tmp_path / "toy", "http://me:hunter2@127.0.0.1:9", patience_seconds=120) as follower:
        assert "hunter2" not in Path(f"/proc/{follower.process.pid}/cmdline").read_text()
        journal.ended("finished")
    written = (tmp_path / "toy" / "journal" / LOG_NAME).read_text()
    assert "not everything was sent" in written and "hunter2" not in written


def test_news_is_read_once_and_old_attempts_are_not_news(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.committed(0, 8)
    first.ended("stopped")
    second = Journal(tmp_path)
    second.metrics({"loss": 1.0}, 2, 16)
    news = _News(tmp_path)
    assert not news.look() and not news.ended
    second.committed(1, 16)
    assert news.look() and not news.look() and not news.ended
    second.ended("finished")
    assert news.look() and news.ended

"""Dead runs are found: by their own follower, by a neighbour once the lease ran out, and they may come back."""

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.tracking.lease import LEASE_TAG
from pipeline.tracking.shipper import heartbeat, ship
from tests.tracking.journals import start, the_run, train

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_a_dead_trainer_is_marked_killed_and_a_resumed_one_runs(client: "MlflowClient", tmp_path: Path) -> None:
    train(start(tmp_path / "toy"), 1, 2)
    path = tmp_path / "toy" / "journal" / "events-000.jsonl"
    path.write_text(path.read_text().replace(f'"pid":{os.getpid()}', '"pid":4194300'))
    ship(tmp_path / "toy")
    assert the_run(client).info.status == "KILLED"
    again = start(tmp_path / "toy")
    again.resumed(2)
    ship(tmp_path / "toy")
    assert the_run(client).info.status == "RUNNING"


def test_of_another_machine_nothing_is_said(client: "MlflowClient", tmp_path: Path) -> None:
    train(start(tmp_path / "toy"), 1, 2)
    path = tmp_path / "toy" / "journal" / "events-000.jsonl"
    text = path.read_text().replace(f'"pid":{os.getpid()}', '"pid":4194300')
    path.write_text(text.replace(socket.gethostname(), "n9"))
    ship(tmp_path / "toy")
    assert the_run(client).info.status == "RUNNING"


def test_a_lost_machine_ends_as_killed_and_goes_on_under_the_same_id(
    client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = start(tmp_path / "toy")
    train(journal, 1, 2)
    ship(tmp_path / "toy")
    run_id, now_ms = the_run(client).info.run_id, time.time_ns() // 1_000_000
    until_ms = int(the_run(client).data.tags[LEASE_TAG])
    assert now_ms < until_ms <= now_ms + 600_000
    other = start(tmp_path / "neighbour")
    train(other, 1, 2)
    ship(tmp_path / "neighbour")
    monkeypatch.setattr("pipeline.tracking.lease._now_ms", lambda: until_ms - 1)
    assert heartbeat(tmp_path / "neighbour") and client.get_run(run_id).info.status == "RUNNING"
    monkeypatch.setattr("pipeline.tracking.lease._now_ms", lambda: until_ms + 1)
    assert heartbeat(tmp_path / "neighbour")
    lost = client.get_run(run_id)
    assert lost.info.status == "KILLED" and "lease ran out" in lost.data.tags["tessera.reason"]
    again = start(tmp_path / "toy")
    again.resumed(2)
    train(again, 3, 4)
    again.ended("finished")
    ship(tmp_path / "toy")
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED" and found.data.tags["tessera.reason"] == ""
    assert [metric.step for metric in client.get_metric_history(run_id, "loss")] == [1, 2, 3, 4]


def test_a_heartbeat_of_a_run_that_was_called_dead_brings_it_back(client: "MlflowClient", tmp_path: Path) -> None:
    assert not heartbeat(tmp_path / "unknown")
    train(start(tmp_path / "toy"), 1, 2)
    ship(tmp_path / "toy")
    client.set_terminated(the_run(client).info.run_id, "KILLED")
    assert heartbeat(tmp_path / "toy")
    assert the_run(client).info.status == "RUNNING"

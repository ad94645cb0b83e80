"""Replay into a real MLflow store: exactly once, only what is settled, whatever dies in between."""

import errno
import json
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipeline.command_line import run_program
from pipeline.config import UserError
from pipeline.tracking import shipper
from pipeline.tracking.journal import Journal
from pipeline.tracking.lease import LEASE_TAG
from pipeline.tracking.shipper import heartbeat, ship, shipped_run_id
from pipeline.tracking.system import SystemLog
from tests.tracking.journals import losses, start, the_run, train

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_a_whole_run(client: "MlflowClient", tmp_path: Path) -> None:
    run = tmp_path / "runs" / "toy"
    journal = start(run)
    (run / "config.yaml").write_text("data:\n  train: s3://me:hunter2@store/train\n")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text('{"fingerprint": "s3://me:hunter2@store"}')
    lineage = {"run": "shapes/toy", "data_url": str(tmp_path / "shards"), "data_digest": "ab" * 32}
    lineage |= {"validation_url": "memory://me:hunter2@nowhere/x", "validation_digest": "cd" * 32}
    (run / "lineage.json").write_text(json.dumps(lineage))
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(run / "p.png")
    train(journal, 1, 3)
    journal.picture("preview", run / "p.png", 3)
    journal.ended("finished")
    assert ship(run)
    assert ship(run)
    shipped = the_run(client)
    assert shipped.info.status == "FINISHED" and shipped.info.run_name == "shapes/toy"
    assert shipped.data.params == {"optim.learning_rate": "0.1", "data.train": "s3://[redacted]@store/train"}
    assert losses(client) == {1: 1.0, 2: 2.0, 3: 3.0}
    names = [item.path for item in client.list_artifacts(shipped.info.run_id)]
    assert names == ["config.yaml", "data", "images", "lineage.json"]
    assert len(client.list_artifacts(shipped.info.run_id, "images")) == 2  # the picture and its thumbnail
    assert sorted(i.dataset.digest for i in shipped.inputs.dataset_inputs) == [("ab" * 32)[:36], ("cd" * 32)[:36]]
    assert [item.path for item in client.list_artifacts(shipped.info.run_id, "data")] == ["data/training-manifest.json"]
    stored = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and run not in path.parents]
    assert len(stored) > 5 and not [path for path in stored if b"hunter2" in path.read_bytes()]
    assert shipped_run_id(run) == shipped.info.run_id


def test_only_what_is_committed_is_sent_while_the_run_goes_on(client: "MlflowClient", tmp_path: Path) -> None:
    journal = start(tmp_path / "toy")
    train(journal, 1, 2)
    train(journal, 3, 4, commit=False)
    ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0}
    assert the_run(client).info.status == "RUNNING"
    journal.committed(4, 4)
    ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}


def test_steps_done_again_have_one_value(client: "MlflowClient", tmp_path: Path) -> None:
    journal = start(tmp_path / "toy")
    train(journal, 1, 2)
    train(journal, 3, 4, commit=False)
    ship(tmp_path / "toy")
    again = start(tmp_path / "toy")
    again.resumed(2)
    train(again, 3, 4, value=-1.0)
    ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0, 3: -3.0, 4: -4.0}


def test_going_back_behind_what_was_sent_draws_no_zigzag(client: "MlflowClient", tmp_path: Path) -> None:
    """The newest generation was bad: the run resumed from an older one, but MLflow cannot forget."""
    journal = start(tmp_path / "toy")
    train(journal, 1, 2)
    train(journal, 3, 4)
    ship(tmp_path / "toy")
    again = start(tmp_path / "toy")
    again.resumed(2)
    train(again, 3, 5, value=-1.0)
    ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: -5.0}


@pytest.mark.parametrize("moment", ["describe", "send_metrics", "send_pictures", "send_state"])
def test_a_crash_between_any_two_requests(
    client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    journal = start(tmp_path / "toy")
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "toy" / "p.png")
    train(journal, 1, 3)
    journal.picture("preview", tmp_path / "toy" / "p.png", 3)
    journal.ended("failed", "out of memory")
    genuine = getattr(shipper, moment)

    def dies(*args: object) -> None:
        genuine(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shipper, moment, dies)
        ship(tmp_path / "toy")
    ship(tmp_path / "toy")
    run = the_run(client)
    assert losses(client) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert len(client.list_artifacts(run.info.run_id, "images")) == 2
    assert (run.info.status, run.data.tags["tessera.reason"]) == ("FAILED", "out of memory")


def test_a_picture_that_was_cut_off_is_written_over(
    client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose disk filled up in the middle of an upload has half a file, and tells of it."""
    journal = start(tmp_path / "toy")
    Image.linear_gradient("L").save(tmp_path / "toy" / "p.png")
    journal.picture("preview", tmp_path / "toy" / "p.png", 3)
    journal.committed(3, 3)
    genuine = type(client).log_artifact

    def cut_off(self: "MlflowClient", run_id: str, path: str, folder: str) -> None:
        Path(path).write_bytes(Path(path).read_bytes()[:40])
        genuine(self, run_id, path, folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "log_artifact", cut_off)
        assert not ship(tmp_path / "toy")
    assert ship(tmp_path / "toy")
    run_id = the_run(client).info.run_id
    paths = [client.download_artifacts(run_id, item.path) for item in client.list_artifacts(run_id, "images")]
    assert len(paths) == 2
    for path in paths:
        with Image.open(path) as picture:
            picture.load()


def test_run_is_found_again_by_its_tag(client: "MlflowClient", tmp_path: Path) -> None:
    train(start(tmp_path / "toy"), 1, 2)
    ship(tmp_path / "toy")
    (tmp_path / "toy" / "journal" / "shipped.json").unlink()
    ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0}


def test_a_run_deleted_on_the_server_is_sent_anew(client: "MlflowClient", tmp_path: Path) -> None:
    train(start(tmp_path / "toy"), 1, 2)
    ship(tmp_path / "toy")
    client.delete_run(the_run(client).info.run_id)
    ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0}


def test_changed_params_are_drift_and_not_fatal(client: "MlflowClient", tmp_path: Path) -> None:
    train(start(tmp_path / "toy"), 1, 2)
    ship(tmp_path / "toy")
    again = start(tmp_path / "toy", learning_rate=0.2)
    again.resumed(2)
    train(again, 3, 3)
    assert ship(tmp_path / "toy")
    data = the_run(client).data
    assert data.params["optim.learning_rate"] == "0.1"
    assert data.tags["tessera.config_drift"] == "optim.learning_rate: 0.1 -> 0.2"
    assert data.tags["tessera.attempts"] == "2"


def test_not_a_number_and_infinity_arrive(client: "MlflowClient", tmp_path: Path) -> None:
    journal = start(tmp_path / "toy")
    journal.metrics({"a": float("nan"), "b": float("-inf")}, 1, 1)
    journal.ended("failed")
    ship(tmp_path / "toy")
    metrics = the_run(client).data.metrics
    assert metrics["a"] != metrics["a"] and metrics["b"] < -1e300


def test_limits_are_kept(client: "MlflowClient", tmp_path: Path) -> None:
    journal = Journal(tmp_path / "toy")
    journal.params({"long": "x" * 7000, **{f"p{i}": i for i in range(120)}})
    journal.metrics({f"m{i}": 1.0 for i in range(1100)}, 1, 1)
    journal.ended("finished")
    assert ship(tmp_path / "toy")
    data = the_run(client).data
    assert len(data.params) == 121 and len(data.params["long"]) == 6000 and len(data.metrics) == 1100


def test_a_dead_server_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train(start(tmp_path / "toy"), 1, 2)
    with caplog.at_level(logging.WARNING):
        assert not ship(tmp_path / "toy", "http://me:hunter2@127.0.0.1:9")
    (record,) = [r for r in caplog.records if r.name == "pipeline.tracking.shipper"]
    assert "no answer" in record.message and "hunter2" not in record.message


def test_an_air_gapped_run_is_shipped_later(client: "MlflowClient", tmp_path: Path) -> None:
    train(start(tmp_path / "toy"), 1, 2)
    assert not ship(tmp_path / "toy", f"sqlite:///{tmp_path}/toy/journal/events-000.jsonl")
    assert ship(tmp_path / "toy")
    assert losses(client) == {1: 1.0, 2: 2.0}


def test_command_line(client: "MlflowClient", tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tessera(*words: str) -> int:
        return run_program("tessera", "", {"registry": ""}, "pipeline.commands", ["registry", *words])

    train(start(tmp_path / "toy"), 1, 2)
    assert tessera("ship", str(tmp_path / "toy")) == 0 and the_run(client).info.run_id in capsys.readouterr().out
    assert tessera("ship", str(tmp_path)) == 2 and "not a run folder" in capsys.readouterr().err
    assert tessera("ship", str(tmp_path / "toy"), "--uri", f"sqlite:///{tmp_path}/toy/journal/events-000.jsonl") == 1
    with pytest.raises(UserError, match="cannot be used"):
        ship(tmp_path / "toy", "gopher://x")
    assert tessera("reap") == 0 and "no run is lost" in capsys.readouterr().out
    client.set_tag(the_run(client).info.run_id, LEASE_TAG, "1000000")
    assert tessera("reap") == 0 and "toy: KILLED" in capsys.readouterr().out


def test_system_metrics_of_every_machine_arrive_once(client: "MlflowClient", tmp_path: Path) -> None:
    journal = start(tmp_path / "toy")
    train(journal, 1, 2)
    log = SystemLog(tmp_path / "toy")
    log.tick()
    SystemLog(tmp_path / "toy").tick()  # a second writer on the same machine stays silent
    (own,) = (tmp_path / "toy" / "journal").glob("system-*.jsonl")
    line = own.read_text()
    assert line.count("\n") == 1
    (tmp_path / "toy" / "journal" / "system-n7.jsonl").write_text(line + line[:20])
    ship(tmp_path / "toy")
    ship(tmp_path / "toy")
    with (tmp_path / "toy" / "journal" / "system-n7.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"time_ms": json.loads(line)["time_ms"] + 10_000, "values": {"x": 2.0}}) + "\n")
    assert heartbeat(tmp_path / "toy")
    run_id = the_run(client).info.run_id
    host = socket.gethostname()
    for name, points in {f"system/{host}/cpu_utilization_percentage": 1, "system/n7/x": 1}.items():
        assert len(client.get_metric_history(run_id, name)) == points
    assert client.get_metric_history(run_id, "system/n7/x")[0].step >= 10
    assert client.get_metric_history(run_id, "system/n7/system_memory_usage_percentage")[0].value > 0


def test_the_newest_checkpoint_is_told_and_not_sent(client: "MlflowClient", tmp_path: Path) -> None:
    journal = start(tmp_path / "toy")
    train(journal, 1, 2)
    folder = tmp_path / "toy" / "checkpoints" / "gen-000002"
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(b"w" * 1000)
    (folder / "manifest.json").write_text('{"digest": "abc"}')
    (tmp_path / "toy" / "lineage.json").write_text(json.dumps({"run": "toy", "git_commit": "c" * 40}))
    ship(tmp_path / "toy")
    run = the_run(client)
    assert run.data.tags["tessera.checkpoint"] == folder.as_uri()
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    record = json.loads(Path(client.download_artifacts(run.info.run_id, "checkpoint.json", str(tmp_path))).read_text())
    assert record["manifest"] == {"digest": "abc"} and record["samples_seen"] == 2
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["checkpoint.json", "lineage.json"]

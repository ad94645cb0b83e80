"""Trainings through real troubles of the server: the trainer never notices, and every value arrives exactly once.

The server is killed, hung, without its database, without room on its disks; the trainer is killed by SIGKILL.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.tracking.follower import LOG_NAME
from pipeline.tracking.journal import FOLDER, Journal, read_events
from pipeline.tracking.registry import Registry
from pipeline.tracking.shipper import ship, shipped_run_id
from tests.runs import ROOT, drawn_shards, environment, kill_after_step, losses, start
from tests.small_disk import SmallDisk, small_disk
from tests.tracking.packages import package, tessera
from tests.tracking.team_server import Postgres, TeamServer, team_server
from tests.tracking.test_team_server import run_of

TRAINER = """
import itertools, pathlib, sys, time
from PIL import Image
from pipeline.tracking.follower import Follower
from pipeline.tracking.journal import Journal
run = pathlib.Path(sys.argv[1])
journal = Journal(run)
journal.params({"seed": 1})
with Follower(run, patience_seconds=240):
    for step in itertools.count(1):
        time.sleep(0.05)
        journal.metrics({"loss": 1.0 / step, "rate": step}, step, step)
        if step % 20 == 0:
            Image.linear_gradient("L").save(run / f"{step}.png")
            journal.picture("preview", run / f"{step}.png", step)
        if step % 5 == 0:
            journal.committed(step, step)
        print(step, flush=True)
        if (run / "enough").exists():
            break
    journal.ended("finished")
"""


def train_through(run: Path, begin: Callable[[], object], end: Callable[[], object], felt: bool = True) -> int:
    """Train with the trouble from step 40 until the follower has failed to send (`felt`); the number of steps."""
    command = [sys.executable, "-c", TRAINER, str(run)]
    variables = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)
    assert trainer.stdout is not None
    step, over_at = 0, None
    for line in trainer.stdout:
        step = int(line)
        if step >= 40 and over_at is None:
            begin()
            if not felt or "tracking:" in (run / FOLDER / LOG_NAME).read_text():
                end()
                over_at = step
        if over_at is not None and step >= over_at + 40:
            (run / "enough").touch()
    assert trainer.wait(300) == 0
    return step


def check_arrived_once(run: Path, num_steps: int) -> None:
    """Every value and every picture of the training is on the server, once and in order."""
    for _ in range(100):  # a follower that gave up leaves the rest to this command
        if tessera("registry", "ship", str(run)) == 0:
            break
        time.sleep(0.5)
    client = Registry().client
    run_id = run_of(Registry(), run.name)
    for metric in ("loss", "rate"):
        points = client.get_metric_history(run_id, metric)
        assert [point.step for point in points] == list(range(1, num_steps + 1))
    names = [item.path for item in client.list_artifacts(run_id, "images")]
    steps = sorted(int(name.split("+")[2]) for name in names)
    assert steps == sorted([*range(20, num_steps + 1, 20)] * 2)  # the picture and its thumbnail
    for name in names:
        with Image.open(client.download_artifacts(run_id, name, str(run))) as picture:
            picture.load()  # whole
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed", "hung", "database restarted", "database away"])
def test_an_outage_in_the_middle_of_training(team: tuple[TeamServer, Postgres], here: Path, trouble: str) -> None:
    """The trainer does not notice, and afterwards every value is there exactly once, in order."""
    server, database = team
    begin, end = {
        "killed": (server.kill, server.start),
        "hung": (server.hang, server.go_on),
        "database restarted": (database.stop, database.start),
        "database away": (database.stop, database.start),
    }[trouble]
    begun: list[bool] = []

    def once() -> None:
        if not begun:
            begin()
            begun.append(True)

    run = here / trouble.replace(" ", "-")
    check_arrived_once(run, train_through(run, once, end, felt=trouble != "database restarted"))


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    try:
        with small_disk(256) as disk:
            yield disk
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_disks_in_the_middle_of_training(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PostgreSQL and S3 have no byte left: nothing is lost, nothing is there twice, and no half model is registered."""
    with team_server(tmp_path, disk.folder) as (server, database):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        model = package(tmp_path / "m").folder
        refusals: list[str] = []

        def free() -> None:
            assert tessera("registry", "register", str(model), "--name", "full") == 2
            refusals.append(capsys.readouterr().err)
            disk.free()
            if not database.is_up():  # it may end when it has no room for its log
                database.start()

        check_arrived_once(tmp_path / "full", train_through(tmp_path / "full", disk.fill, free))
        (line,) = refusals[0].splitlines()
        assert line.startswith(f"tessera: {server.uri}: ")
        assert tessera("registry", "register", str(model), "--name", "full") == 0
        assert tessera("registry", "verify", "full") == 0
        assert [version.number for version in Registry().versions("full")] == [1]


@pytest.mark.slow
def test_a_trainer_killed_by_nine_goes_on_under_the_same_run(team: tuple[TeamServer, Postgres], here: Path) -> None:
    """No committed value is lost, none that was done again shows twice."""
    command = [sys.executable, "-c", TRAINER, str(here / "nine")]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    for line in trainer.stdout:
        if int(line) == 23:
            trainer.send_signal(signal.SIGKILL)
            break
    trainer.wait()
    registry = Registry()
    for _ in range(600):
        if (here / "nine" / "journal" / "shipped.json").is_file():
            run_id = run_of(registry, "nine")
            if registry.client.get_run(run_id).info.status == "KILLED":
                break
        time.sleep(0.2)
    assert [point.step for point in registry.client.get_metric_history(run_id, "loss")] == list(range(1, 21))
    journal = Journal(here / "nine")
    journal.params({"seed": 1})
    journal.resumed(20)
    for step in range(21, 41):
        journal.metrics({"loss": 1.0 / step, "rate": step}, step, step)
    journal.committed(40, 40)
    assert ship(here / "nine") and registry.client.get_run(run_id).info.status == "RUNNING"
    journal.ended("finished")
    assert ship(here / "nine")
    points = registry.client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1.0 / step) for step in range(1, 41)]
    assert registry.client.get_run(run_id).info.status == "FINISHED" and run_of(registry, "nine") == run_id


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_killed_in_an_outage_goes_on_under_the_same_run(
    team: tuple[TeamServer, Postgres], here: Path
) -> None:
    """`tessera train`: the server dies, then the trainer by SIGKILL; the same command again; the server comes back."""
    server, _ = team
    drawn_shards(here, 90)
    words = ["pipeline", "train", str(ROOT / "configs" / "autoencoder" / "debug.yaml"), "run=real", "data.train=train"]
    words += ["data.validation=train", "trainer.total_samples=9600", "trainer.log_every_steps=1"]
    words += ["trainer.checkpoint_every_samples=320", "trainer.validate_every_samples=3200"]
    variables = environment(here) | {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    first = start(here, *words, variables=variables)
    while shipped_run_id(here / "real") is None:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    run_id = shipped_run_id(here / "real")
    server.kill()
    at_kill = 30 + max(losses(here / "real"), default=0)
    kill_after_step(first, here / "real", at_kill)
    second = start(here, *words, variables=variables)
    while max(losses(here / "real")) < at_kill + 5:
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.2)
    server.start()
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    assert tessera("registry", "ship", "real") == 0
    assert run_of(Registry(), "real") == run_id and shipped_run_id(here / "real") == run_id
    client = Registry().client
    shipped = client.get_run(run_id)
    assert shipped.info.status == "FINISHED" and shipped.data.tags["tessera.attempts"] == "2"
    written: dict[str, list[tuple[int, float]]] = {}
    for event in read_events(here / "real"):
        if event.kind == "metrics":
            for name, value in event.body["values"].items():
                written.setdefault(name, []).append((event.samples_seen, value))
    assert len(written) > 5
    for name, points in written.items():
        assert [(point.step, point.value) for point in client.get_metric_history(run_id, name)] == points

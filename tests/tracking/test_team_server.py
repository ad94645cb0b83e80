"""The team's server with everything real: what is sent arrives once whatever dies, and no password is ever told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.checkpoint.package import Package, load_package, save_package
from pipeline.command_line import run_program
from pipeline.tracking.gates import GateConfig
from pipeline.tracking.journal import Journal
from pipeline.tracking.ledger import RacedError, history
from pipeline.tracking.promotion import promote, rollback
from pipeline.tracking.registry import Registry
from pipeline.tracking.shipper import ship
from pipeline.tracking.transfer import copy_version
from tests.tracking.team_server import PASSWORD, Postgres, TeamServer

LINEAGE = {"run": "toy", "stage": "autoencoder", "data_url": "x", "data_digest": "d", "config_digest": "c"}
LINEAGE |= {"git_commit": "a", "samples_seen": 8}
FREE = GateConfig()
TRAINER = """
import sys, time
from pipeline.tracking.follower import Follower
from pipeline.tracking.journal import Journal
run, num_steps = sys.argv[1], int(sys.argv[2])
journal = Journal(run)
journal.params({"seed": 1})
with Follower(run, patience_seconds=240):
    for step in range(1, num_steps + 1):
        time.sleep(0.05)
        journal.metrics({"loss": 1.0 / step, "rate": step}, step, step)
        if step % 5 == 0:
            journal.committed(step, step)
        print(step, flush=True)
    journal.ended("finished")
"""


def package(folder: Path, value: float = 1.0) -> Package:
    picture = np.full((8, 8, 3), int(value), dtype=np.uint8)
    save_package(folder, "vq-autoencoder", {"w": torch.full((2,), value)}, {}, LINEAGE, "# A model", picture)
    figures = {
        "package_digest": load_package(folder).digest,
        "metrics": {"psnr": 20 + value},
        "protocol": {"name": "p"},
    }
    (folder / "evaluation.json").write_text(json.dumps(figures))
    return load_package(folder)


def run_of(registry: Registry, name: str) -> str:
    experiment = registry.client.get_experiment_by_name("tessera")
    (run,) = registry.client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return str(run.info.run_id)


def test_a_run_a_model_and_no_password(team: tuple[TeamServer, Postgres], here: Path) -> None:
    server, _ = team
    journal = Journal(here / "toy")
    journal.params({"seed": 1})
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(here / "toy" / "p.png")
    for samples in range(1, 50):
        journal.metrics({"loss": 1.0 / samples}, samples, samples)
    journal.picture("preview", here / "toy" / "p.png", 49)
    journal.ended("finished")
    assert ship(here / "toy") and ship(here / "toy")
    registry = Registry()
    run_id = run_of(registry, "toy")
    assert registry.client.get_run(run_id).info.status == "FINISHED"
    assert len(registry.client.get_metric_history(run_id, "loss")) == 49
    assert len(registry.client.list_artifacts(run_id, "images")) == 2
    version = registry.register(package(here / "m").folder, "round-trip")
    assert version.source.startswith("mlflow-artifacts:")
    registry.verify(version)
    assert promote(registry, version, FREE).passed
    assert registry.find("round-trip@champion").number == 1 and len(history(registry, "round-trip")) == 1
    local = Registry(f"sqlite:///{here}/local.db")
    there = copy_version(registry, version, local)
    assert copy_version(local, there, registry, "back-again").files_digest == version.files_digest
    assert PASSWORD not in server.command_lines() and "testing" not in server.command_lines()
    assert PASSWORD not in server.log and "mlflow-server.sh" not in server.log


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed", "hung", "database restarted", "database away"])
def test_an_outage_in_the_middle_of_training(team: tuple[TeamServer, Postgres], here: Path, trouble: str) -> None:
    """The trainer does not notice, and afterwards every value is there exactly once, in order."""
    server, database = team
    name, num_steps = trouble.replace(" ", "-"), 120
    command = [sys.executable, "-c", TRAINER, str(here / name), str(num_steps)]
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert trainer.stdout is not None
    for line in trainer.stdout:
        step = int(line)
        if step == 40:
            {"killed": server.kill, "hung": server.hang}.get(trouble, database.stop)()
            if trouble == "database restarted":
                database.start()
        if step == num_steps:
            break
    {"killed": server.start, "hung": server.go_on, "database away": database.start}.get(trouble, lambda: None)()
    assert trainer.wait(300) == 0
    for _ in range(100):  # a follower that gave up leaves the rest to this command
        if (
            run_program("tessera", "", {"registry": ""}, "pipeline.commands", ["registry", "ship", str(here / name)])
            == 0
        ):
            break
        time.sleep(0.5)
    registry = Registry()
    run_id = run_of(registry, name)
    for metric in ("loss", "rate"):
        points = registry.client.get_metric_history(run_id, metric)
        assert [point.step for point in points] == list(range(1, num_steps + 1))
    assert registry.client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_trainer_killed_by_nine_goes_on_under_the_same_run(team: tuple[TeamServer, Postgres], here: Path) -> None:
    """No committed value is lost, none that was done again shows twice."""
    command = [sys.executable, "-c", TRAINER, str(here / "nine"), "40"]
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
@pytest.mark.timeout(3000)
def test_two_promoters_race_two_hundred_times(team: tuple[TeamServer, Postgres], here: Path) -> None:
    """One winner each time, and a history that knows every one of them."""
    registries = [Registry(), Registry()]
    versions = [registries[0].register(package(here / str(i), float(i)).folder, "raced") for i in (1, 2)]
    winners = []
    for _ in range(200):
        barrier, won = threading.Barrier(2), []

        def race(index: int, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            own = registries[index]
            genuine = Registry.verify
            own.verify = lambda v: (genuine(own, v), barrier.wait())[0]  # type: ignore[method-assign]
            try:
                promote(own, versions[index], FREE)
                won.append(versions[index].number)
            except RacedError:
                pass

        threads = [threading.Thread(target=race, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert registries[0].aliases("raced")["champion"] == won[0]
        winners += won
    assert [move.version for move in history(registries[0], "raced")] == winners
    assert {1, 2} == set(winners)


PROMOTER = """
import sys
from pipeline.tracking.gates import GateConfig
from pipeline.tracking.promotion import promote
from pipeline.tracking.registry import Registry
registry = Registry()
version = registry.find(sys.argv[1])
print("ready", flush=True)
promote(registry, version, GateConfig())
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_promoter_killed_at_any_moment(team: tuple[TeamServer, Postgres], here: Path) -> None:
    """Forty real kills, spread over the time that a promotion takes."""
    registry = Registry()
    versions = [registry.register(package(here / str(i), float(i)).folder, "killed") for i in (1, 2)]
    promote(registry, versions[0], FREE)
    started = time.monotonic()
    promote(registry, versions[1], FREE)
    seconds = 2 * (time.monotonic() - started)
    outcomes = set()
    for attempt in range(40):
        old = registry.aliases("killed")["champion"]
        command = [sys.executable, "-c", PROMOTER, f"killed/{3 - old}"]
        promoter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert promoter.stdout is not None and promoter.stdout.readline() == "ready\n"
        time.sleep(seconds * attempt / 40)
        promoter.kill()
        promoter.wait()
        champion = registry.aliases("killed")["champion"]
        assert champion in (1, 2)
        outcomes.add(champion == old)
        before = history(registry, "killed")
        assert rollback(registry, "killed").number != before[-1].version  # ends what was begun, then moves
        assert registry.aliases("killed")["champion"] == history(registry, "killed")[-1].version
        assert len(history(registry, "killed")) == len(before) + 1
    assert outcomes == {True, False}

"""The team's server with everything real: what is sent arrives once whatever dies, and no password is ever told."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.tracking.download import verify
from pipeline.tracking.journal import Journal
from pipeline.tracking.ledger import history
from pipeline.tracking.promotion import promote, rollback
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.shipper import ship
from pipeline.tracking.transfer import copy_version
from tests.tracking.packages import FREE, package, race
from tests.tracking.team_server import PASSWORD, Postgres, TeamServer


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
    version = register(registry, package(here / "m").folder, "round-trip")
    assert version.source.startswith("mlflow-artifacts:")
    verify(registry, version)
    assert promote(registry, version, FREE).passed
    assert registry.find("round-trip@champion").number == 1 and len(history(registry, "round-trip")) == 1
    local = Registry(f"sqlite:///{here}/local.db")
    there = copy_version(registry, version, local)
    assert copy_version(local, there, registry, "back-again").files_digest == version.files_digest
    assert PASSWORD not in server.command_lines() and "testing" not in server.command_lines()
    assert PASSWORD not in server.log and "mlflow-server.sh" not in server.log


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_promoters_race_two_hundred_times(
    team: tuple[TeamServer, Postgres], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One winner each time, and a history that knows every one of them."""
    registry = Registry()
    versions = [register(registry, package(here / str(i), float(i)).folder, "raced") for i in (1, 2)]
    winners = []
    for _ in range(200):
        won = race(monkeypatch, versions)
        assert len(won) == 1
        assert registry.aliases("raced")["champion"] == won[0]
        winners += won
    assert [move.version for move in history(registry, "raced")] == winners
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
    versions = [register(registry, package(here / str(i), float(i)).folder, "killed") for i in (1, 2)]
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

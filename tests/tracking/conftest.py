"""Tracking servers for tests: a fresh local database for each (made once and copied), and one team server for all."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tracking.team_server import Postgres, TeamServer, team_server

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking.registry import Registry


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.tracking.server import connect

    path = tmp_path_factory.mktemp("server") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "MlflowClient":
    """A client of the default server of the folder that the test runs in, which is `tmp_path`."""
    from pipeline.tracking.server import connect

    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "runs" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for child processes: the folder has changed
    return connect()


@pytest.fixture
def registry(client: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Registry":
    """The registry of that server, with a cache of its own."""
    from pipeline.tracking.registry import Registry

    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    return Registry()


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TeamServer, Postgres]]:
    """The real server of a team, and its database."""
    with team_server(tmp_path_factory.mktemp("team")) as both:
        yield both


@pytest.fixture
def here(tmp_path: Path, team: tuple[TeamServer, Postgres], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the team's server as the default one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team[0].uri)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path

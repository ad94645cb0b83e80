"""A fresh local tracking server for each test: creating its database takes seconds, so it is made once and copied."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mlflow import MlflowClient


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

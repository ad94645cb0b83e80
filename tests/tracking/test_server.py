"""The tracking server's address and its refusals; and, slowly, everything once through a real server over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.checkpoint.package import load_package, save_package
from pipeline.config import UserError
from pipeline.tracking.download import fetch
from pipeline.tracking.gates import GateConfig
from pipeline.tracking.journal import Journal
from pipeline.tracking.ledger import history
from pipeline.tracking.promotion import promote
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import ServerError, connect, tracking_uri
from pipeline.tracking.shipper import ship

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
    assert tracking_uri("sqlite:////data/x.db") == "sqlite:////data/x.db"


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("gopher://x", UserError, "cannot be used as a tracking server"),
        ("sqlite:////proc/none/x.db", ServerError, "/proc/none"),
        ("nosuchdatabase://me:hunter2@h/db", UserError, "cannot be used"),
    ],
)
def test_refused_addresses(uri: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        connect(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_may_create_the_database(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.tracking.server import connect;print(len(connect(sys.argv[1]).search_experiments()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/runs/x.db"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [b"1", b"1"]


@pytest.fixture
def server(client: "MlflowClient", tmp_path: Path) -> Iterator[str]:
    """A real server with proxied artifacts on a free port; its database is a copy of an empty one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///runs/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "store"), "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait(30)


@pytest.mark.slow
def test_everything_over_http(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "toy"
    journal = Journal(run)
    journal.params({"seed": 1})
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(run / "p.png")
    for samples in range(1, 50):
        journal.metrics({"loss": 1.0 / samples}, samples, samples)
    journal.picture("preview", run / "p.png", 49)
    journal.ended("finished")
    assert ship(run, server) and ship(run, server)
    registry = Registry(server)
    (shipped,) = registry.client.search_runs([registry.client.get_experiment_by_name("tessera").experiment_id])
    assert shipped.info.status == "FINISHED"
    assert len(registry.client.get_metric_history(shipped.info.run_id, "loss")) == 49
    assert len(registry.client.list_artifacts(shipped.info.run_id, "images")) == 2

    lineage = {"run": "toy", "stage": "autoencoder", "data_url": "x", "data_digest": "d", "config_digest": "c"}
    lineage |= {"git_commit": "a", "samples_seen": 8, "run_uid": shipped.data.tags["tessera.run_uid"]}
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    package = save_package(tmp_path / "m", "vq-autoencoder", {"w": torch.ones(1)}, {}, lineage, "", picture)
    evaluation = {"package_digest": package.digest, "metrics": {}, "protocol": {}}
    (package.folder / "evaluation.json").write_text(json.dumps(evaluation))
    version = register(registry, package.folder)
    assert load_package(fetch(registry, version)).digest == package.digest
    assert promote(registry, version, GateConfig()).passed
    assert registry.find("vq-autoencoder@champion").number == 1 and len(history(registry, "vq-autoencoder")) == 1

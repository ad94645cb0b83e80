"""The tracking server's address, and its refusals in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.tracking.server import ServerError, connect, one_line, tracking_uri


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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Max retries exceeded (SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed)",
            "MLFLOW_TRACKING_SERVER_CERT_PATH",
        ),
        ("Max retries exceeded (NewConnectionError: refused)", "is the server running"),
        ("API request failed with error code 401 != 200. Response body: 'You are ...'", "MLFLOW_TRACKING_PASSWORD"),
        ("(psycopg.errors.DiskFull) No space left at postgresql://me:hunter2@h/db\n[SQL: INSERT ...]", "No space left"),
    ],
)
def test_errors_say_what_to_do(said: str, told: str) -> None:
    line = one_line(Exception(said))
    assert told in line and "\n" not in line and "hunter2" not in line


@pytest.mark.slow
def test_two_processes_may_create_the_database(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.tracking.server import connect;print(len(connect(sys.argv[1]).search_experiments()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/runs/x.db"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [b"1", b"1"]

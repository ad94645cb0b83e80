"""The team's server behind TLS, with users and passwords: who is refused is told in one line, and no secret is told."""

import json
import secrets
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking.journal import Journal
from pipeline.tracking.registry import Registry
from tests.tracking.packages import package, tessera
from tests.tracking.team_server import PASSWORD, Postgres, TeamServer
from tests.tracking.tls_proxy import TlsProxy, tls_proxy

ADA, BOB = "hunter2-of-the-admin", "hunter3-of-bob-who-trains"
AUTH = """[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = ada
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture
def guarded(team: tuple[TeamServer, Postgres], here: Path) -> Iterator[tuple[TeamServer, TlsProxy]]:
    """A second server on the team's database and bucket, which asks for passwords, and TLS in front of it."""
    pytest.importorskip("flask_wtf")
    first, database = team
    (here / "auth.ini").write_text(AUTH.format(database=database.uri, password=ADA))
    own = {"MLFLOW_AUTH_CONFIG_PATH": str(here / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex()}
    server = TeamServer(here, first.environment | own)
    try:
        server.start()
        with tls_proxy(here, server.port) as proxy:
            yield server, proxy
    finally:
        server.kill()


def create_user(server: TeamServer, name: str, password: str) -> None:
    words = json.dumps({"username": name, "password": password}).encode()
    request = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/users/create", words)
    request.add_header("Content-Type", "application/json")
    request.add_header("Authorization", "Basic " + b64encode(f"ada:{ADA}".encode()).decode())
    urllib.request.urlopen(request, timeout=60).close()


@pytest.mark.slow
def test_who_may_enter(
    guarded: tuple[TeamServer, TlsProxy],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, proxy = guarded
    create_user(server, "bob", BOB)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    said: list[str] = []

    def refusal() -> str:
        assert tessera("registry", "list") == 2
        said.append(capsys.readouterr().err)
        (line,) = said[-1].splitlines()
        return line

    assert "certificate is not trusted" in refusal() and "MLFLOW_TRACKING_SERVER_CERT_PATH" in refusal()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(proxy.certificate))
    assert "user or password is wrong" in refusal() and "MLFLOW_TRACKING_USERNAME" in refusal()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADA)
    assert "user or password is wrong" in refusal()

    (here / "gates.yaml").write_text("vq-autoencoder: {}")
    for value, (name, password) in enumerate((("ada", ADA), ("bob", BOB))):  # bob in what ada began
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-" + password)
        journal = Journal(here / "runs" / name)
        journal.params({"seed": 1})
        journal.metrics({"loss": 1.0}, 1, 1)
        journal.ended("finished")
        assert tessera("registry", "ship", f"runs/{name}") == 1
        said += capsys.readouterr()
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        assert tessera("registry", "ship", f"runs/{name}") == 0
        model = package(here / name, float(value))
        assert tessera("registry", "register", str(model.folder), "--name", "behind-tls") == 0
        assert tessera("registry", "promote", "behind-tls", "--gates", "gates.yaml") == 0
        assert tessera("registry", "verify", "behind-tls@champion") == 0
        said += capsys.readouterr()
    assert Registry().find("behind-tls@champion").number == 2

    written = "\n".join(path.read_text() for path in (here / "runs").rglob("*") if path.is_file())
    for secret in (ADA, BOB, PASSWORD):
        assert secret not in "".join(said) + written + server.log + server.command_lines()


@pytest.mark.slow
def test_a_foreign_host_is_refused(guarded: tuple[TeamServer, TlsProxy]) -> None:
    server, _ = guarded
    request = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/experiments/get", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)

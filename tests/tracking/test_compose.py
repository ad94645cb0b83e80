"""The compose file, as far as it can be tried without Docker: its words are known, and what it runs does run."""

import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.source import ROOT
from tests.test_dependencies import canonical, requirements
from tests.tracking.team_server import Postgres, TeamServer, program

LAUNCH = ROOT / "launch"
TEXT = (LAUNCH / "mlflow-compose.yaml").read_text()
HOST = "mlflow.example.org"
KNOWN = {"image", "restart", "environment", "volumes", "healthcheck", "depends_on", "ports", "command"}
"""Keys of a service that it uses, all of the compose specification."""


def services() -> dict[str, dict[str, Any]]:
    tree = yaml.safe_load(TEXT)
    assert set(tree) == {"services", "volumes"}
    return dict(tree["services"])


def interpolated(text: str, given: dict[str, str]) -> str:
    """`text` with ${NAME:-default} and ${NAME:?message} filled in, as compose does it."""

    def value(match: re.Match[str]) -> str:
        assert match["kind"] == ":-" or match["name"] in given, f"{match['name']}: {match['rest']}"
        return given.get(match["name"], match["rest"])

    return re.sub(r"\$\{(?P<name>\w+)(?P<kind>:[-?])(?P<rest>[^}]*)\}", value, text)


def test_every_part_is_known_and_there() -> None:
    head = "".join(line for line in TEXT.splitlines(keepends=True) if line.startswith("#"))
    asked = set(re.findall(r"\$\{(\w+)", TEXT))
    assert "$" not in re.sub(r"\$\{\w+:[-?][^}]*\}", "", TEXT), "a reference that is neither asked for nor optional"
    assert {name for name in asked if name not in head} == set(), "asked for, and the head does not say so"
    for name, service in services().items():
        assert set(service) <= KNOWN, name
        assert all(isinstance(value, str) for value in service["environment"].values()), name
    server = services()["mlflow"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    for volume in server["volumes"]:
        assert (LAUNCH / volume.partition(":")[0]).exists(), volume
    assert set(server["depends_on"]) == {"database"} and "healthcheck" in services()["database"]


def test_it_installs_what_the_server_needs() -> None:
    shell, option, line = services()["mlflow"]["command"]
    assert (shell, option) == ("sh", "-c")
    subprocess.run(["sh", "-n", "-c", line], check=True)
    install, start = line.split(" && ")
    words = install.split()
    assert words[:5] == ["pip", "install", "--quiet", "--constraint", "/constraints.txt"]
    names = {canonical(word.partition("[")[0]) for word in words[5:]}
    assert names == {"mlflow", *requirements()["server"]}
    assert start == "exec bash /launch/mlflow-server.sh"


@pytest.mark.slow
def test_what_it_runs_does_run(team: tuple[TeamServer, Postgres], tmp_path: Path) -> None:
    """Its health check on a real PostgreSQL, and its server with its environment, under its public name alone."""
    first, database = team
    check = services()["database"]["healthcheck"]["test"]
    assert check[0] == "CMD"
    place = ["--host=127.0.0.1", f"--port={database.port}"]
    is_ready = Path(program("initdb")).with_name(check[1])
    subprocess.run([is_ready, *check[2:], *place], check=True, stdout=subprocess.DEVNULL)

    given = first.environment | {"POSTGRES_PASSWORD": "unused", "MLFLOW_SERVER_ALLOWED_HOSTS": HOST}
    words = {k: interpolated(v, given) for k, v in services()["mlflow"]["environment"].items()}
    assert words["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://mlflow:unused@database/mlflow"
    here = {"MLFLOW_BACKEND_STORE_URI": database.uri, "MLFLOW_HOST": "127.0.0.1"}  # no name `database`, and loopback
    server = TeamServer(tmp_path, words | here)
    try:
        server.start()
        address = f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
        request = urllib.request.Request(address, headers={"Host": HOST})
        urllib.request.urlopen(request, timeout=60).close()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.replace("127.0.0.1", "localhost"), timeout=60)
    finally:
        server.kill()

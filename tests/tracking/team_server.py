"""The server of a team for tests, all of it real: PostgreSQL, S3 and `launch/mlflow-server.sh`, on loopback.

Each can be killed, stopped and started again; only processes that were started here are ended.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.s3_server import start as start_s3
from tests.source import ROOT

PASSWORD = "hunter2-of-the-database"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps outside of PATH."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"no PostgreSQL here: {name} is missing; apt install postgresql")
    return str(Path(found).resolve())


@dataclass
class Postgres:
    """A database cluster in `folder`, which PostgreSQL's own user owns where we are root: it refuses root."""

    folder: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            self.user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        words = ("--username=mlflow", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8")
        self._run("initdb", "-D", str(self.folder / "data"), *words)
        self.start()

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg://mlflow:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "-w", "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: the next start recovers from the log."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def is_up(self) -> bool:
        """False after a crash from which it could not recover, such as for want of room."""
        return self._call("pg_ctl", "-D", str(self.folder / "data"), "status").returncode == 0

    def _run(self, name: str, *words: str) -> None:
        done = self._call(name, *words)
        assert done.returncode == 0, done.stderr

    def _call(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [program(name), *words], cwd=self.folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, check=False, **self.user,
        )  # fmt: skip


@dataclass
class TeamServer:
    """`launch/mlflow-server.sh` with one worker."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def start(self) -> None:
        own = {"MLFLOW_PORT": str(self.port), "MLFLOW_WORKERS": "1", "PYTHON": sys.executable}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(ROOT / "launch" / "mlflow-server.sh")],
                cwd=self.folder,
                env={**os.environ, **self.environment, **own},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        assert self.process is not None
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            assert self.process.poll() is None, self.log
            time.sleep(0.2)
        raise AssertionError(self.log)

    def kill(self) -> None:
        """The server and its workers, at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def hang(self) -> None:
        """It takes connections and answers none."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)
        self.wait_until_it_answers()

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def command_lines(self) -> str:
        """What `ps` shows of the server and its workers."""
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return "\n".join(" ".join(process.cmdline()) for process in [own, *own.children(recursive=True)])


@contextlib.contextmanager
def team_server(folder: Path, disk: Path | None = None) -> Iterator[tuple[TeamServer, Postgres]]:
    """All three, running, with a new bucket for artifacts; their data lie on the file system of `disk` if given."""
    pytest.importorskip("swift")
    import s3fs

    program("initdb")
    # Not below the tests' folder: only its owner may enter it.
    place = Path(tempfile.mkdtemp(prefix="tessera-postgres-", dir=disk))
    s3 = start_s3((disk or folder) / "s3")
    server: TeamServer | None = None
    database: Postgres | None = None
    try:
        database = Postgres(place)
        keys = s3.environment()
        store = s3fs.S3FileSystem(key=keys["AWS_ACCESS_KEY_ID"], secret=keys["AWS_SECRET_ACCESS_KEY"],
                                  endpoint_url=s3.endpoint)  # fmt: skip
        store.mkdir("mlflow")
        server = TeamServer(
            folder,
            {
                **keys,
                "MLFLOW_BACKEND_STORE_URI": database.uri,
                "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
                "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
            },
        )
        server.start()
        yield server, database
    finally:
        if server is not None:
            server.kill()
        if database is not None:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                database.stop()
        s3.stop()
        shutil.rmtree(place, ignore_errors=True)

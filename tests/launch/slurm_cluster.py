"""A real Slurm of a few nodes on this machine: munged, slurmctld and a slurmd for each, in one folder, on free ports.

Works for root and for anybody else: the daemons run as the user of the test, with a munge key of their own.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.ranks import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SBIN = "/usr/sbin"

CONF = """
ClusterName=tessera-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5,bf_interval=5
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
SlurmdTimeout=10
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
PartitionName=all Nodes=ALL Default=YES MaxTime=60
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000\n"


def missing_programs() -> list[str]:
    """What of Slurm and munge this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")]


class SlurmCluster:
    """Nodes n1, n2, ..., up from construction to `close`."""

    def __init__(self, folder: Path, num_nodes: int = 2) -> None:
        self.folder = folder
        nodes = [f"n{i + 1}" for i in range(num_nodes)]
        (folder / "controller").mkdir(parents=True)
        self.conf = folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        rows = "".join(NODE.format(name=name, host=host, port=free_port()) for name in nodes)
        values = {"folder": folder, "host": host, "user": getpass.getuser(), "controller_port": free_port()}
        self.conf.write_text(rows + CONF.format(**values))
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:{SBIN}"}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._start_munge()
        self.daemons["controller"] = self._start("slurmctld", "-D", "-f", str(self.conf))
        for node in nodes:
            self.start_node(node)
        up = str(num_nodes)
        self._wait("all nodes are up", lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == up)

    def start_node(self, node: str) -> None:
        """Start (again) the slurmd of a node."""
        self.daemons[node] = self._start("slurmd", "-D", "-N", node, "-f", str(self.conf))

    def lose_node(self, node: str) -> None:
        """SIGKILL the slurmd of a node, its step daemons and all that runs there, as when its power fails."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        for pid in self.tasks(node):
            stepd = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            for victim in [stepd] * (Path(f"/proc/{stepd}/comm").read_text().strip() == "slurmstepd") + [pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)

    def tasks(self, node: str) -> list[int]:
        """Processes that this Slurm has started on a node."""
        marks, found = (f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.conf}".encode()), []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if set(marks) <= set(entry.read_bytes().split(b"\0")):
                    found.append(int(entry.parent.name))
        return found

    def run(self, *words: str) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, by field."""
        words = self.run("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def close(self) -> None:
        """End the daemons that this object started, and the jobs with them."""
        subprocess.run(["scancel", "--user", getpass.getuser()], env=self.environment, check=False)
        time.sleep(1)
        for name in reversed(self.daemons):
            daemon = self.daemons[name]
            daemon.kill()
            daemon.wait()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        places = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munged.pid"}
        places |= {"log-file": self.folder / "munged.log", "seed-file": self.folder / "munge.seed"}
        options = [f"--{name}={place}" for name, place in places.items()]
        self.daemons["munge"] = self._start("munged", "--foreground", "--force", *options)
        self._wait("munged listens", (self.folder / "munge.socket").exists)

    def _start(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.out").open("ab") as log:
            return subprocess.Popen([f"{SBIN}/{program}", *words], env=self.environment, stdout=log, stderr=log)

    def _wait(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < deadline, f"not within a minute: {what}; see {self.folder}"
            time.sleep(0.2)

"""Preflight: what this machine lacks for a run, each finding with its remedy. Called by `tessera doctor`.

A check looks and changes nothing but one temporary file in the run folder. It returns one `Finding`: `ok`; `warning`,
when a run works in spite of it; or `failure`, when a run will fail.
"""

import glob
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import UserError

if TYPE_CHECKING:  # torch comes with it, and a torch that does not import is one of the findings
    from pipeline.data.dataset import DataConfig

SHM = Path("/dev/shm")
SHM_LEFTOVERS = "deepspeed_allreduce_buffer_*"
MIN_SHM_BYTES = 256 << 20
MAX_CLOCK_SKEW_SECONDS = 5.0
PYTHONS, TORCHES = ((3, 11), (3, 13)), ((2, 11), (2, 13))


class Status(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was looked at."""
    status: Status
    """How bad it is."""
    found: str
    """What was seen."""
    remedy: str = ""
    """What to do; empty when all is well."""


@dataclass(frozen=True)
class Needs:
    """What a run will use; the checks that need a config are left out without one."""

    run: Path = Path("runs")
    """Where the run writes; it need not exist yet."""
    state_bytes: int | None = None
    """Size of one generation of checkpoints."""
    tracking_uri: str | None = None
    """As in the config."""
    data: "DataConfig | None" = None
    """What the run reads."""


def examine(needs: Needs) -> Iterator[Finding]:
    """All checks, in the order in which a run would meet the trouble."""
    yield check_version("Python", sys.version_info[:2], PYTHONS)
    yield check_torch()
    yield check_device()
    yield check_shared_memory(SHM)
    yield check_loopback()
    yield check_host_name()
    yield check_clock(needs.run)
    yield check_disk(needs.run, needs.state_bytes)
    yield check_tracking(needs.tracking_uri)
    if needs.data is not None:
        for url in filter(None, (needs.data.train, needs.data.validation)):
            yield check_data(url, needs.data)


def check_version(name: str, have: tuple[int, ...], supported: tuple[tuple[int, int], tuple[int, int]]) -> Finding:
    """The first two numbers of a version against the inclusive range that the tests cover."""
    low, high = (".".join(map(str, version)) for version in supported)
    found = ".".join(map(str, have))
    if have[:2] < supported[0]:
        return Finding(name, Status.FAILURE, found, f"install {name} {low} to {high}")
    if have[:2] > supported[1]:
        return Finding(name, Status.WARNING, found, f"tested with {low} to {high}; make test tells whether it works")
    return Finding(name, Status.OK, found)


def check_torch() -> Finding:
    """torch imports, and its version is one that the tests cover."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", Status.FAILURE, _first_line(error), "make venv, or pip install for this CUDA version")
    major, minor = torch.__version__.split(".")[:2]
    finding = check_version("torch", (int(major), int(minor)), TORCHES)
    return Finding(finding.check, finding.status, torch.__version__, finding.remedy)


def check_device() -> Finding:
    """The GPUs that torch sees, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "this torch was built without CUDA, or for a newer driver: pip install another build of it"
            return Finding("device", Status.WARNING, "nvidia-smi is here, but torch sees no GPU", remedy)
        return Finding("device", Status.OK, f"no GPU; {os.cpu_count()} CPU cores")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not torch.cuda.is_bf16_supported():
        return Finding("device", Status.WARNING, ", ".join(names), "no bf16: train with engine.precision=fp32")
    return Finding("device", Status.OK, ", ".join(names))


def check_shared_memory(folder: Path) -> Finding:
    """Room for ranks to exchange data, and nothing left there by ranks that were killed."""
    if not folder.is_dir():
        return Finding("shared memory", Status.WARNING, f"no {folder}", "mount it: several ranks exchange data there")
    left = [Path(path) for path in glob.glob(str(folder / SHM_LEFTOVERS))]
    size, free = shutil.disk_usage(folder).total, shutil.disk_usage(folder).free
    found = f"{_gib(free)} of {_gib(size)} free"
    if left:
        held = sum(path.stat().st_size for path in left)
        remedy = f"when no training runs here: rm {folder / SHM_LEFTOVERS}"
        return Finding("shared memory", Status.WARNING, f"{found}; {len(left)} leftovers hold {_gib(held)}", remedy)
    if free < MIN_SHM_BYTES:
        return Finding("shared memory", Status.WARNING, found, "start the container with --shm-size=8g or --ipc=host")
    return Finding("shared memory", Status.OK, found)


def check_loopback() -> Finding:
    """A free port on the loopback, and a connection to it: what ranks on one machine meet through."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError as error:
        remedy = "allow connections on 127.0.0.1, and look for exhausted ports with ss -s"
        return Finding("loopback", Status.FAILURE, _first_line(error), remedy)
    return Finding("loopback", Status.OK, f"connected on port {port}")


def check_host_name() -> Finding:
    """The name under which other machines are told to find this one."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        remedy = "add it to DNS or /etc/hosts before training on several machines"
        return Finding("host name", Status.WARNING, f"{name} has no address", remedy)
    return Finding("host name", Status.OK, f"{name} is {address}")


def check_clock(run: Path) -> Finding:
    """This clock against that of the storage under the run folder: a skew breaks S3 signatures and lease times."""
    folder = _existing_parent(run)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            skew = abs(os.fstat(file.fileno()).st_mtime - time.time())
    except OSError as error:
        return Finding("clock", Status.FAILURE, _first_line(error), f"make {folder} writable, or name another run=")
    found = f"{skew:.1f} s from the storage's"
    if skew > MAX_CLOCK_SKEW_SECONDS:
        return Finding("clock", Status.WARNING, found, "synchronise it (timedatectl set-ntp true) here and there")
    return Finding("clock", Status.OK, found)


def check_disk(run: Path, state_bytes: int | None) -> Finding:
    """Room for two generations: the next one is written before the oldest goes."""
    folder = _existing_parent(run)
    free = shutil.disk_usage(folder).free
    found = f"{_gib(free)} free under {folder}"
    if state_bytes is None:
        return Finding("disk", Status.OK, found)
    found += f"; a generation takes {_gib(state_bytes)}"
    if free < 2 * state_bytes:
        return Finding("disk", Status.FAILURE, found, "make room for two generations, or name another run=")
    return Finding("disk", Status.OK, found)


def check_tracking(uri: str | None) -> Finding:
    """Whether the MLflow server answers. A run goes on without it, since its journal is shipped later."""
    from pipeline.tracking.server import ServerError, answering, connect, tracking_uri

    address = tracking_uri(uri)
    path = Path(address.removeprefix("sqlite:///"))
    if address.startswith("sqlite:///") and not path.exists():
        return Finding("tracking", Status.OK, f"{address}, made by the first run")
    try:
        client = connect(uri)
        with answering(uri):
            client.search_experiments(max_results=1)
    except ServerError as error:
        remedy = "start the server, or set MLFLOW_TRACKING_URI; a run works without, and its journal is shipped later"
        return Finding("tracking", Status.WARNING, _first_line(error), remedy)
    except UserError as error:
        return Finding("tracking", Status.FAILURE, _first_line(error), "set MLFLOW_TRACKING_URI to an address it knows")
    return Finding("tracking", Status.OK, f"{address} answers")


def check_data(url: str, config: "DataConfig") -> Finding:
    """The manifest, and the first sample through the whole chain of reading and decoding."""
    from pipeline.data.loader import sequential
    from pipeline.data.shards import load_manifest

    name = f"data {url}"
    try:
        count = load_manifest(url).num_samples
        first = next(sequential(url, config, batch_size=1)).keys[0]
    except (UserError, OSError) as error:
        found, _, remedy = _first_line(error).partition("; ")  # a UserError names its own
        return Finding(name, Status.FAILURE, found, remedy or f"tessera-data validate {url}")
    return Finding(name, Status.OK, f"{count} samples; {first} decodes")


def _existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"

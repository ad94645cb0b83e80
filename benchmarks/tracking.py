"""What tracking costs: step times while the server is up, killed, hung and without room; and large registries.

`python -m benchmarks.tracking outages` trains the debug autoencoder for some minutes beside a real MLflow server whose
state changes every few seconds, and compares each span with those before and after it: interleaved, in one run. One of
the states is a control in which nothing happens: its ratio says what the measurement itself can tell.
`python -m benchmarks.tracking scale [URI]` fills a server (by default a new local database) with 1,000 versions, 1,000
promotions and a run of 10,000 points of each of five metrics, and times the commands over them.
"""

import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.tracking.journal import Journal, read_events
from pipeline.tracking.ledger import ENTRY_TAG
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import DIGEST_TAG, KIND_TAG
from tests.small_disk import SmallDisk, small_disk

NUM_VERSIONS, NUM_POINTS, NUM_METRICS = 1000, 10_000, 5
STATE_SECONDS, NUM_ROUNDS = 4.0, 8
DISK_MEGABYTES = 64
SETTLE_SECONDS = 2.0
"""After each change of state, left out of both sides."""
STATES = ("up", "killed", "up", "hung", "up", "full", "up", "control")
OUTAGES = ("killed", "hung", "full")
ROOT = Path(__file__).parents[1]


class Server:
    """`mlflow server` whose database and files lie on a small disk; it can be killed, hung, filled and brought back."""

    def __init__(self, disk: SmallDisk) -> None:
        self.disk = disk
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process, self.state = self._start(), "up"

    def become(self, state: str) -> None:
        """Change to one of `STATES`."""
        if self.state == "killed":
            self.process = self._start()
        elif self.state == "hung":
            os.killpg(self.process.pid, signal.SIGCONT)
        elif self.state == "full":
            self.disk.free()
        self.state = state
        if state == "full":
            self.disk.fill()
        elif state in OUTAGES:
            os.killpg(self.process.pid, signal.SIGKILL if state == "killed" else signal.SIGSTOP)
        if state == "killed":
            self.process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        folder = self.disk.folder
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "store"), "--port", str(self.port), "--workers", "1"]
        null = subprocess.DEVNULL
        variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as launch/mlflow-server.sh
        process = subprocess.Popen(command, cwd=folder, stdout=null, stderr=null, start_new_session=True, env=variables)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).close()
                return process
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("mlflow server does not answer")


def outages(folder: Path) -> str:
    """Medians of the step time with the server up, killed, hung and full, and whether everything arrived once."""
    from tests.runs import drawn_shards

    drawn_shards(folder, 64)
    with small_disk(DISK_MEGABYTES) as disk:
        server = Server(disk)
        try:
            return _outages(folder, server)
        finally:
            server.become("killed")


@dataclass
class Span:
    """A few seconds in one state of the server."""

    state: str
    begin_ms: float
    end_ms: float
    cpu_seconds: float
    """Processor time of the trainer."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each step."""

    @property
    def cpu_per_step(self) -> float:
        """Seconds."""
        return self.cpu_seconds / len(self.steps)


def _outages(folder: Path, server: Server) -> str:
    from pipeline.tracking.shipper import ship, shipped_run_id

    run = folder / "run"
    uri = f"http://127.0.0.1:{server.port}"
    words = [
        f"run={run}",
        f"data.train={folder}/train",
        f"data.validation={folder}/train",
        "trainer.total_samples=100000000",
    ]
    words += ["trainer.log_every_steps=1", "trainer.validate_every_samples=100000000", f"tracking.uri={uri}"]
    command = [sys.executable, "-m", "pipeline", "train", str(ROOT / "configs/autoencoder/debug.yaml"), *words]
    trainer = psutil.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while not (run / "journal" / "shipped.json").is_file():
            assert trainer.poll() is None, "the training ended by itself"
            time.sleep(0.5)
        spans = [_watch(trainer, server, state) for state in [*STATES * NUM_ROUNDS, "up"]]
        server.become("up")
    finally:
        trainer.terminate()
        trainer.wait()
    assert ship(run, uri)
    logged = set()
    for event in read_events(run):
        if event.kind == "metrics":
            logged.add(event.samples_seen)
            span = next((span for span in spans if span.begin_ms < event.time_ms < span.end_ms), None)
            if span and "steps_per_second" in event.body["values"]:
                span.steps.append(1 / event.body["values"]["steps_per_second"])
    client, run_id = Registry(uri).client, shipped_run_id(run, uri)
    points = [point.step for point in client.get_metric_history(run_id, "steps_per_second")]
    once = f"{len(points)} of {len(logged)} logged steps on the server, {len(points) - len(set(points))} of them twice"
    return "\n".join(["step of the debug autoencoder, one thread", *_rows(spans), f"  {once}"])


def _watch(trainer: psutil.Popen, server: Server, state: str) -> Span:
    """Bring the server into a state, let it settle, and look on for a while."""
    server.become(state)
    time.sleep(SETTLE_SECONDS)
    begin, before = time.time(), trainer.cpu_times()
    time.sleep(STATE_SECONDS)
    after = trainer.cpu_times()
    return Span(state, begin * 1000, time.time() * 1000, after.user - before.user + after.system - before.system)


def _rows(spans: list[Span]) -> Iterator[str]:
    """A line for each state: medians of its steps, and ratios of its spans to the mean of the `up` before and after."""
    up = statistics.median(step for span in spans if span.state == "up" for step in span.steps)
    for state in dict.fromkeys(STATES):
        places = [i for i, span in enumerate(spans) if span.state == state and span.steps]
        wall = statistics.median(step for i in places for step in spans[i].steps)
        cpu = statistics.median(spans[i].cpu_per_step for i in places)
        line = f"  {state:<8}{1000 * wall:8.2f} ms, {1000 * cpu:8.2f} ms of processor time"
        if state != "up":
            clock = sorted(_ratio([statistics.median(span.steps) for span in spans[i - 1 : i + 2]]) for i in places)
            work = statistics.median(_ratio([span.cpu_per_step for span in spans[i - 1 : i + 2]]) for i in places)
            line += f", {wall / up:.3f} of `up`; by spans {statistics.median(clock):.3f} and {work:.3f}"
            line += f" (from {clock[0]:.3f} to {clock[-1]:.3f})"
        yield f"{line}; {sum(len(spans[i].steps) for i in places)} steps in {len(places)} spans"


def _ratio(before_middle_after: list[float]) -> float:
    before, middle, after = before_middle_after
    return 2 * middle / (before + after)


def scale(folder: Path, uri: str) -> str:
    """Seconds of the commands over a large registry and a long run, each as a process of its own, import included."""
    run = folder / "long"
    journal = Journal(run)
    journal.params({"seed": 0})
    for step in range(1, NUM_POINTS + 1):
        journal.metrics({f"metric{i}": step / (i + 1) for i in range(NUM_METRICS)}, step, step)
    journal.committed(1, NUM_POINTS)
    registry = Registry(uri)
    _fill(registry)
    lines = []
    for words in (
        ["reap"],
        ["list"],
        ["show", "big/500"],
        ["show", "big@champion"],
        ["ship", str(run)],
        ["ship", str(run)],
    ):
        command = [sys.executable, "-m", "pipeline", "registry", *words, "--uri", uri]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        name = " ".join(words).replace(str(run), "RUN")
        lines.append(f"  {name:<20}{seconds:6.1f} s, of them {worked:.1f} s of processor time")
    title = f"{NUM_VERSIONS} versions and promotions, {NUM_METRICS} metrics of {NUM_POINTS} points"
    return "\n".join([title, *lines])


def _fill(registry: Registry) -> None:
    """Rows as `register` and `promote` make them, without their files."""
    lineage = json.dumps({"run": "x", "samples_seen": 1, "data_url": "x", "data_digest": "d", "config_digest": "c"})
    client = registry.client
    for name in ("big", "big.promotions"):
        client.create_registered_model(name)
    for i in range(1, NUM_VERSIONS + 1):
        tags = {DIGEST_TAG: f"{i:064d}", KIND_TAG: "vq-autoencoder", "lineage": lineage, "samples_seen": str(i)}
        client.create_model_version("big", f"mlflow-artifacts:/{i}", tags=tags)
        entry = {"action": "promote", "alias": "champion", "version": i, "before": i - 1 or None, "by": "x"}
        entry |= {"time_ms": 0, "decided_on": i - 1, "token": str(i), "number": 0}
        client.create_model_version("big.promotions", "none", tags={ENTRY_TAG: json.dumps(entry)})
    client.set_registered_model_alias("big", "champion", str(NUM_VERSIONS))


def main(argv: list[str]) -> None:
    """`outages`, or `scale [URI]`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        uri = argv[1] if len(argv) > 1 else f"sqlite:///{folder}/mlflow.db"
        print(outages(folder) if argv[:1] == ["outages"] else scale(folder, uri), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""One run on the MLflow server: what of the journal it has, and the requests that bring it the rest.

Each of them may be repeated after a crash without a second trace: MLflow drops a metric that it has, and files are
written over. Called by the shipper, and by nobody else.
"""

import json
import socket
import tempfile
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline.checkpoint.generation import MANIFEST, folder_of
from pipeline.config import config_differences
from pipeline.run_folder import RunFolder
from pipeline.storage import write_json
from pipeline.tracking.journal import FOLDER, Event, read_all_events
from pipeline.tracking.lease import REASON_TAG, renew
from pipeline.tracking.system import read_system

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's word for each end; a stopped run is RUNNING again once it goes on."""

METRICS_PER_REQUEST, KEY_CHARACTERS, TAG_CHARACTERS = 1000, 250, 8000
"""MLflow's limits."""

CHECKPOINT_TAG = "tessera.checkpoint"

CLOCK_SLACK_MS = 1000
"""A process that was born later than this after the event is another one with the same number."""


@dataclass
class Shipped:
    """RUN/journal/shipped.json: what the server has. If it is lost, the run is found again by its tag."""

    uri: str = ""
    """Server that the rest is about; for another server everything begins anew."""
    run_id: str = ""
    """MLflow's run."""
    samples_seen: int = -1
    """Values up to here are on the server; MLflow cannot delete them, so they are never sent a second time."""
    names: list[str] = field(default_factory=list)
    """Metrics that were sent with exactly `samples_seen`."""
    described: bool = False
    """Params, config, lineage and manifests are there."""
    pictures: dict[str, int] = field(default_factory=dict)
    """Of each series of pictures: `samples_seen` of the newest one that was sent."""
    system: dict[str, int] = field(default_factory=dict)
    """Bytes of each machine's file of system metrics that were sent."""

    def has(self, name: str, samples_seen: int) -> bool:
        """True when this value was sent, or its place was taken before a run went back further than was sent."""
        return samples_seen < self.samples_seen or (samples_seen == self.samples_seen and name in self.names)

    def add(self, name: str, samples_seen: int) -> None:
        """Note that a value was sent; in the order of `samples_seen`."""
        if samples_seen > self.samples_seen:
            self.samples_seen, self.names = samples_seen, []
        self.names.append(name)

    @classmethod
    def read(cls, run_dir: Path, uri: str) -> "Shipped":
        """What was sent to `uri`; nothing, when the record is of another server."""
        path = run_dir / FOLDER / "shipped.json"
        shipped = cls(**json.loads(path.read_text())) if path.is_file() else cls()
        return shipped if shipped.uri == uri else cls(uri=uri)

    def write(self, run_dir: Path) -> None:
        """Record it in the run folder."""
        write_json(run_dir / FOLDER / "shipped.json", asdict(self))


def send_metrics(client: "MlflowClient", shipped: Shipped, events: list[Event]) -> None:
    """New values, on an axis of samples: the one that another batch size does not bend."""
    from mlflow.entities import Metric

    fresh = [
        Metric(name[:KEY_CHARACTERS], value, event.time_ms, event.samples_seen)
        for event in events
        if event.kind == "metrics"
        for name, value in event.body["values"].items()
        if not shipped.has(name, event.samples_seen)
    ]
    for start in range(0, len(fresh), METRICS_PER_REQUEST):
        client.log_batch(shipped.run_id, metrics=fresh[start : start + METRICS_PER_REQUEST])
    for metric in fresh:
        shipped.add(metric.key, metric.step)


def send_pictures(client: "MlflowClient", shipped: Shipped, folder: Path, events: list[Event]) -> None:
    """New pictures, with a slider over samples in MLflow's page.

    A picture always has the same two files on the server, so that what a full disk or a crash left of them is written
    over. `client.log_image` would give them other names each time, and leave the half of a pair behind.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

    fresh = [
        event
        for event in events
        if event.kind == "picture"
        and event.samples_seen > shipped.pictures.get(event.body["name"], -1)
        and (folder / event.body["path"]).is_file()
    ]
    if fresh:
        client.set_tag(shipped.run_id, MLFLOW_LOGGED_IMAGES, True)
    for event in fresh:
        _send_picture(client, shipped.run_id, folder / event.body["path"], event)
        shipped.pictures[event.body["name"]] = event.samples_seen
        shipped.write(folder)


def _send_picture(client: "MlflowClient", run_id: str, path: Path, event: Event) -> None:
    """The picture and its thumbnail, under the names by which MLflow's page knows a series and its steps."""
    from mlflow.tracking.multimedia import compress_image_size
    from PIL import Image

    series = event.body["name"].replace("/", "~")
    place = f"{series}+step+{event.samples_seen}+timestamp+{event.time_ms}"
    stem = f"{place}+{uuid.uuid5(uuid.NAMESPACE_OID, place)}"
    with Image.open(path) as picture, tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{stem}.png", Path(folder) / f"{stem}+compressed.webp"]
        for file, image in zip(files, (picture, compress_image_size(picture)), strict=True):
            image.save(file)
            client.log_artifact(run_id, str(file), "images")


def send_checkpoint(client: "MlflowClient", run_id: str, folder: Path, events: list[Event]) -> None:
    """Where the newest checkpoint is and what it holds; never its files, which may be many gigabytes."""
    commits = [event for event in events if event.kind == "committed"]
    if not commits:
        return
    path = folder_of(RunFolder(folder).checkpoints, commits[-1].body["generation"])
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):  # a newer one has taken its place already, and tells of itself
        return
    record = {"uri": path.absolute().as_uri(), "samples_seen": commits[-1].samples_seen, "manifest": manifest}
    client.log_dict(run_id, record, "checkpoint.json")
    client.set_tag(run_id, CHECKPOINT_TAG, record["uri"])


def send_system(client: "MlflowClient", shipped: Shipped, folder: Path) -> None:
    """What the machines were doing, on an axis of seconds since the run began."""
    from mlflow.entities import Metric

    origin_ms = next(event.time_ms for event in read_all_events(folder))
    fresh, ends = [], dict(shipped.system)
    for host, end, time_ms, values in read_system(folder, shipped.system):
        step, ends[host] = (time_ms - origin_ms) // 1000, end
        fresh += [Metric(f"system/{host}/{name}", value, time_ms, step) for name, value in values.items()]
    for start in range(0, len(fresh), METRICS_PER_REQUEST):
        client.log_batch(shipped.run_id, metrics=fresh[start : start + METRICS_PER_REQUEST])
    shipped.system = ends


def send_state(client: "MlflowClient", run_id: str, events: list[Event], dead: bool) -> None:
    """Tags that may change, and the status: MLflow itself never notices that a run died."""
    from mlflow.entities import RunTag

    starts = [event for event in events if event.kind == "started"]
    params = [event.body["params"] for event in events if event.kind == "params"]
    drift = [line for old, new in zip(params, params[1:], strict=False) for line in config_differences(old, new)]
    end = events[-1] if events[-1].kind == "ended" else None
    tags = {
        "tessera.attempts": str(len(starts)),
        "tessera.config_drift": "\n".join(drift),
        REASON_TAG: end.body["reason"] if end else "",
    }
    shown = {k: v for k, v in tags.items() if v or (k == REASON_TAG and len(starts) > 1)}  # of an earlier end
    client.log_batch(run_id, tags=[RunTag(k, v[:TAG_CHARACTERS]) for k, v in shown.items()])
    if end is not None:
        client.set_terminated(run_id, RUN_STATUS[end.body["status"]], end.time_ms)
    elif dead or not _alive(starts[-1]):
        client.set_terminated(run_id, "KILLED", events[-1].time_ms)
    else:
        renew(client, run_id)


def _alive(start: Event) -> bool:
    """False when the trainer ran on this machine and its process is gone; from elsewhere nothing can be said."""
    if start.body["host"] != socket.gethostname():
        return True
    try:
        born_ms = psutil.Process(start.body["pid"]).create_time() * 1000
    except psutil.NoSuchProcess:
        return False
    return born_ms <= start.time_ms + CLOCK_SLACK_MS

"""Carries a run's journal to MLflow: exactly once, with the stored times, and never in the way of training.

Only what cannot be done again is sent: everything up to the last committed generation, and all of it once the run
has ended. The server may be away for as long as it likes; the next call sends what is missing. `tessera train` keeps a
`pipeline.tracking.follower` beside itself; by hand it is `tessera registry ship RUN`, such as for a run of a cluster
without a network.
"""

import contextlib
import fcntl
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import UserError
from pipeline.redact import redact_text
from pipeline.tracking.description import describe
from pipeline.tracking.journal import FOLDER, Event, read_events
from pipeline.tracking.lease import reap, renew
from pipeline.tracking.replay import (
    Shipped,
    send_checkpoint,
    send_metrics,
    send_pictures,
    send_state,
    send_system,
)
from pipeline.tracking.server import ServerError, answering, connect, experiment_id, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

UID_TAG = "tessera.run_uid"

log = logging.getLogger(__name__)


def ship(run_dir: Path | str, uri: str | None = None, dead: bool = False) -> bool:
    """Send what the server lacks. Safe at any time, any number of times, and by two processes at once.

    Args:
        uri: tracking server; by default that of `tracking_uri()`.
        dead: the caller knows that the trainer is gone; otherwise this is found out on the trainer's own machine.

    Returns:
        False, after a warning of one line, when the server does not answer: nothing is lost, call again later.

    Raises:
        UserError: not a run folder, or an address of no kind that MLflow knows.
    """
    folder, address = Path(run_dir), tracking_uri(uri)
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{folder}: not a run folder, it has no {FOLDER}/")
    try:
        with _one_shipper(folder), answering(address):
            _ship(folder, connect(address), address, dead)
    except ServerError as error:
        log.warning("tracking: %s (the journal keeps everything; it is sent when the server is back)", error)
        return False
    return True


def heartbeat(run_dir: Path | str, uri: str | None = None) -> bool:
    """Renew the lease of a run that was shipped before, send what its machines did, and mark the lost runs of others.

    Returns:
        False when the server does not answer.
    """
    folder, address = Path(run_dir), tracking_uri(uri)
    shipped = Shipped.read(folder, redact_text(address))
    if not shipped.run_id:
        return False
    try:
        with _one_shipper(folder), answering(address):
            client = connect(address)
            renew(client, shipped.run_id)
            send_system(client, shipped, folder)
            shipped.write(folder)
            reap(client, experiment_id(client))
    except ServerError as error:
        log.warning("tracking: %s", error)
        return False
    return True


def settled(events: list[Event]) -> list[Event]:
    """The events that no resume can take back: those of the state last committed, or all of a run that has ended."""
    ends = [i for i, event in enumerate(events) if event.kind in ("committed", "resumed", "ended")]
    if not ends:
        return []
    last = events[ends[-1]]
    # Steps go on while a generation is written, so those behind it may stand before its commit.
    return [e for e in events[: ends[-1] + 1] if last.kind == "ended" or e.samples_seen <= last.samples_seen]


def shipped_run_id(run_dir: Path | str, uri: str | None = None) -> str | None:
    """The id of the MLflow run that this run folder was shipped to, if it was shipped to that server."""
    return Shipped.read(Path(run_dir), redact_text(tracking_uri(uri))).run_id or None


def _ship(folder: Path, client: "MlflowClient", address: str, dead: bool) -> None:
    events = read_events(folder)
    if not events:
        return
    shipped = Shipped.read(folder, redact_text(address))
    if not _exists(client, shipped.run_id):
        shipped = Shipped(uri=shipped.uri, run_id=_find_or_create(client, folder, events))
        shipped.write(folder)
    if not shipped.described and any(event.kind == "params" for event in events):
        describe(client, shipped.run_id, folder, events)
        shipped.described = True
        shipped.write(folder)
    final = settled(events)
    send_metrics(client, shipped, final)
    shipped.write(folder)
    send_pictures(client, shipped, folder, final)
    send_checkpoint(client, shipped.run_id, folder, final)
    send_system(client, shipped, folder)
    shipped.write(folder)
    send_state(client, shipped.run_id, events, dead)


def _exists(client: "MlflowClient", run_id: str) -> bool:
    """False when nothing was recorded, or when the server has lost or deleted the run since."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return False
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _find_or_create(client: "MlflowClient", folder: Path, events: list[Event]) -> str:
    """The run with this journal's identity; created when there is none, with its tag in the same transaction."""
    start = next(event for event in events if event.kind == "started")
    experiment = experiment_id(client)
    found = client.search_runs([experiment], f"tags.`{UID_TAG}` = '{start.body['uid']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {UID_TAG: start.body["uid"], "tessera.host": start.body["host"]}
    lineage = folder / "lineage.json"
    name = json.loads(lineage.read_text())["run"] if lineage.is_file() else folder.absolute().name
    return str(client.create_run(experiment, start.time_ms, tags, name).info.run_id)


@contextlib.contextmanager
def _one_shipper(folder: Path) -> Iterator[None]:
    """Let a second shipper of the same run wait."""
    with (folder / FOLDER / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

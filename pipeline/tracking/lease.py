"""Who is alive: each running run on the server has a lease, which its follower renews and anybody may find run out.

MLflow never notices that a run died, and a machine that vanishes takes the follower with it. So the follower of every
other run, and `tessera registry reap`, mark a run KILLED when its lease has run out. A follower that was only cut off
from the server sets its run to RUNNING again; nothing is lost by that.
"""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LEASE_TAG, REASON_TAG = "tessera.lease_until_ms", "tessera.reason"
RENEW_SECONDS = 60.0
LEASE_SECONDS = 600.0
"""Ten renewals: clocks that differ by minutes, or a server that is started again, kill nobody."""
LOST = "its lease ran out: the machine was lost, or cut off from the server"


def renew(client: "MlflowClient", run_id: str) -> None:
    """The run is alive for another `LEASE_SECONDS`."""
    client.set_tag(run_id, LEASE_TAG, str(_now_ms() + int(LEASE_SECONDS * 1000)))
    client.update_run(run_id, status="RUNNING")


def reap(client: "MlflowClient", experiment_id: str) -> list["Run"]:
    """Mark the runs KILLED that are called RUNNING and have not renewed their lease; returns them."""
    token, now_ms = None, _now_ms()
    lost: list[Run] = []
    while token != "":
        page = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000, page_token=token)
        lost += [run for run in page if int(run.data.tags.get(LEASE_TAG, now_ms)) < now_ms]
        token = page.token or ""
    for run in lost:
        client.set_tag(run.info.run_id, REASON_TAG, LOST)
        client.set_terminated(run.info.run_id, "KILLED", int(run.data.tags[LEASE_TAG]) - int(LEASE_SECONDS * 1000))
    return lost


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""What stands still while a run goes on, as MLflow has a place for it: params, the config, the lineage and the data.

Sent once, before the first figures; sending it again changes nothing. Called by the shipper, and by nobody else.
"""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.data.shards import MANIFEST_NAME
from pipeline.redact import redact, redact_text
from pipeline.storage import join, read_bytes
from pipeline.tracking.journal import Event

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMS_PER_REQUEST, KEY_CHARACTERS, PARAM_CHARACTERS, DIGEST_CHARACTERS = 100, 250, 6000, 36
"""MLflow's limits."""


def describe(client: "MlflowClient", run_id: str, folder: Path, events: list[Event]) -> None:
    """Params, the resolved config, the lineage and the data: what stands still while the run goes on."""
    from mlflow.entities import Param

    params = next(event.body["params"] for event in events if event.kind == "params")
    flat = [Param(k[:KEY_CHARACTERS], v[:PARAM_CHARACTERS]) for k, v in flatten(params).items()]
    for start in range(0, len(flat), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=flat[start : start + PARAMS_PER_REQUEST])
    origin = next(event for event in events if event.kind == "started").body
    client.set_tag(run_id, "mlflow.source.name", f"tessera train, process {origin['pid']} on {origin['host']}")
    for name in ("config.yaml", "lineage.json"):
        if (folder / name).is_file():
            tree = redact(yaml.safe_load((folder / name).read_text()))
            text = json.dumps(tree, indent=2) if name.endswith("json") else yaml.safe_dump(tree, sort_keys=False)
            client.log_text(run_id, text, name)
    if (folder / "lineage.json").is_file():
        lineage = json.loads((folder / "lineage.json").read_text())
        if lineage.get("git_commit"):
            client.set_tag(run_id, "mlflow.source.git.commit", lineage["git_commit"])
        _send_datasets(client, run_id, lineage)


def _send_datasets(client: "MlflowClient", run_id: str, lineage: dict[str, Any]) -> None:
    """The data of the run as MLflow dataset inputs, and its manifests where they can be read from here."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for context, prefix in (("training", "data"), ("validation", "validation")):
        chosen = lineage.get("selection_digest" if context == "training" else "validation_selection_digest")
        digest, url = chosen or lineage.get(f"{prefix}_digest"), lineage.get(f"{prefix}_url")
        if not digest or not url:
            continue
        address = redact_text(url)
        name = address.rstrip("/").rpartition("/")[2] or context
        dataset = Dataset(name, digest[:DIGEST_CHARACTERS], "tessera-shards", json.dumps({"url": address}))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        text = None
        # Gone, or not reachable from where it is shipped: each kind of storage has errors of its own, and the digest
        # that matters is recorded already.
        with contextlib.suppress(Exception):
            text = redact_text(read_bytes(join(url, MANIFEST_NAME)).decode())
        if text is not None:
            client.log_text(run_id, text, f"data/{context}-manifest.json")
    if inputs:
        client.log_inputs(run_id, inputs)


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": [1, 2]}}` as `{"a.b": "[1, 2]"}`."""
    if isinstance(tree, dict):
        parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: tree if isinstance(tree, str) else json.dumps(tree)}

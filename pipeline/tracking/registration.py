"""How an exported folder becomes a version: everything uploaded first, and a row that can be seen is complete.

Called by `tessera registry register` for a folder of this machine, and by `transfer` for one of another server.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checkpoint.package import CARD, EVALUATION, RECONSTRUCTIONS, Package, load_package
from pipeline.config import UserError
from pipeline.tracking.bundle import bundled, sums_digest
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import EXPERIMENT, answering, experiment_id
from pipeline.tracking.version import CANDIDATE, FILES_TAG, LOG_SUFFIX, Version, evaluation_tags, tags_of

if TYPE_CHECKING:
    from mlflow.entities import Run

MODELS_EXPERIMENT = "tessera-models"
"""Registered folders have runs of their own there: cleaning up training runs never deletes a registered model."""

DESCRIPTION_CHARACTERS = 5000
"""MLflow's limit for the text on a version's page, which is the model card."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def register(registry: Registry, folder: Path | str, name: str | None = None) -> Version:
    """Make an exported folder a version of `name` (default: its kind), and the candidate.

    The same package again is the same version; it only takes over an evaluation that was made since.

    Raises:
        UserError: not an exported folder, or a name that no model can have.
    """
    package = load_package(folder)
    name = name or package.kind
    if not _NAME.fullmatch(name) or name.endswith(LOG_SUFFIX):
        raise UserError(f"{name!r}: a name has letters, digits and . _ - only, and does not end in {LOG_SUFFIX}")
    known = registry.with_digest(package.digest, name)
    version = known or _create(registry, package, name)
    _record_evaluation(registry, package, version)
    return registry.find(f"{name}/{version.number}")


def adopt(registry: Registry, folder: Path, name: str, tags: dict[str, str]) -> Version:
    """Make a folder that another registry gave out a version here, byte by byte."""
    package = load_package(folder)
    return _store(registry, folder, package, name, _new_run(registry, package, name), tags)


def _create(registry: Registry, package: Package, name: str) -> Version:
    run = _new_run(registry, package, name)
    first_stage = registry.with_digest(package.autoencoder.digest) if package.autoencoder else None
    tags = tags_of(package) | ({"autoencoder_version": first_stage.ref} if first_stage else {})
    with bundled(package, run.info.run_id) as folder:
        return _store(registry, folder, package, name, run, tags | {FILES_TAG: sums_digest(folder)})


def _new_run(registry: Registry, package: Package, name: str) -> "Run":
    """The run that owns the files, under its training run if that is on the same server."""
    client, uid = registry.client, package.lineage.get("run_uid")
    with answering(registry.uri):
        experiment, tags = client.get_experiment_by_name(EXPERIMENT), {}
        if experiment is not None and uid:
            words = f"tags.`tessera.run_uid` = '{uid}'"
            found = client.search_runs([experiment.experiment_id], words, max_results=1)
            tags = {"mlflow.parentRunId": found[0].info.run_id} if found else {}
        return client.create_run(experiment_id(client, MODELS_EXPERIMENT), tags=tags, run_name=name)


def _store(registry: Registry, folder: Path, package: Package, name: str, run: "Run", tags: dict[str, str]) -> Version:
    """Upload, then create the version."""
    client, run_id = registry.client, run.info.run_id
    with answering(registry.uri):
        client.log_artifacts(run_id, str(folder), "package")
        client.set_terminated(run_id)
        card = (folder / CARD).read_text()[:DESCRIPTION_CHARACTERS]
        number = registry.add_row(name, f"{run.info.artifact_uri}/package", run_id, tags, card)
        first = registry.with_digest(package.digest, name)
        if first is not None and first.number != number:  # somebody registered it at the same time
            client.delete_model_version(name, str(number))
            client.delete_run(run_id)
            return first
        client.set_registered_model_alias(name, CANDIDATE, str(number))
    return registry.find(f"{name}/{number}")


def _record_evaluation(registry: Registry, package: Package, version: Version) -> None:
    """Store an evaluation.json that was made after the version."""
    if package.evaluation is None or package.evaluation == version.evaluation:
        return
    with answering(registry.uri):
        for path in filter(Path.is_file, (package.folder / EVALUATION, package.folder / RECONSTRUCTIONS)):
            registry.client.log_artifact(version.run_id, str(path), "package")
        for key, value in evaluation_tags(package).items():
            registry.client.set_model_version_tag(version.name, str(version.number), key, value)

"""The models of a team, by name and version, in the MLflow model registry: register, find, fetch, verify.

A version is an exported folder stored as artifacts, with its digests and measured values as tags; it is plain files,
and `fetch` runs none of the code that lies beside them for `mlflow.pyfunc` (see `bundle`). Aliases say what it is for:
`candidate`, `champion`, `previous` (see `promotion`). Called by `tessera registry` and by `pipeline.export.resolve`.
"""

import difflib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.package import CARD, EVALUATION, RECONSTRUCTIONS, Package, load_package
from pipeline.config import UserError
from pipeline.redact import redact_text
from pipeline.tracking.bundle import DATA_MANIFEST, bundled, check_sums, sums_digest
from pipeline.tracking.server import EXPERIMENT, answering, connect, experiment_id, tracking_uri
from pipeline.tracking.version import (
    CANDIDATE,
    CHAMPION,
    DIGEST_TAG,
    FILES_TAG,
    LOG_SUFFIX,
    Version,
    evaluation_tags,
    tags_of,
    version_of,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

MODELS_EXPERIMENT = "tessera-models"
"""Registered folders have runs of their own there: cleaning up training runs never deletes a registered model."""

DESCRIPTION_CHARACTERS = 5000
"""MLflow's limit for the text on a version's page, which is the model card."""

MANY = 10
"""Versions that an error message names."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/v?(?P<number>\d+))?")


class Registry:
    """The registry of one tracking server.

    Raises, from every method:
        ServerError: the server does not answer.
        UserError: there is no such model, version or alias; names what is near.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = tracking_uri(uri)
        self.client = connect(self.uri)

    def names(self) -> list[str]:
        """All registered models."""
        with answering(self.uri):
            found = [model.name for model in _pages(self.client.search_registered_models)]
        return sorted(name for name in found if not name.endswith(LOG_SUFFIX))

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first."""
        aliases = self.aliases(name)
        with answering(self.uri):
            found = _pages(self.client.search_model_versions, f"name='{name}'")
        return sorted((version_of(v, aliases) for v in found), key=lambda version: version.number)

    def rows(self, log: str) -> list[tuple[int, dict[str, str]]]:
        """Number and tags of every entry of a log, oldest first; none if there is no such log."""
        with answering(self.uri):
            found = _pages(self.client.search_model_versions, f"name='{log}'")
        return sorted((int(row.version), dict(row.tags)) for row in found)

    def find(self, ref: str) -> Version:
        """The version that `models:/name@alias`, `models:/name/7`, `name@alias` or `name/7` means.

        A bare `name` means its champion, or else its newest version.
        """
        match = _REFERENCE.fullmatch(ref)
        if match is None:
            raise UserError(f"{ref}: a registered model is written models:/NAME@ALIAS or models:/NAME/7")
        name, aliases = match["name"], self.aliases(match["name"])
        if match["number"]:
            number: int | None = int(match["number"])
        elif match["alias"] or CHAMPION in aliases:
            number = aliases.get(match["alias"] or CHAMPION)
        else:
            number = max((version.number for version in self.versions(name)), default=None)
        found = self._version(name, number, aliases) if number else None
        if found is None:
            there = ", ".join(f"@{alias}" for alias in sorted(aliases)) or "no alias"
            numbers = ", ".join(str(version.number) for version in self.versions(name)[-MANY:]) or "none"
            raise UserError(f"{ref}: no such version; {name} has {there}, and the newest versions are {numbers}")
        return found

    def _version(self, name: str, number: int, aliases: dict[str, int]) -> Version | None:
        """One version, if it is there."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                return version_of(self.client.get_model_version(name, str(number)), aliases)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def with_digest(self, digest: str, name: str | None = None) -> Version | None:
        """The oldest version, of one model or of any, that holds this package."""
        with answering(self.uri):
            found = _pages(self.client.search_model_versions, f"tags.`{DIGEST_TAG}` = '{digest}'")
        holders = sorted((row.name, int(row.version)) for row in found if name in (None, row.name))
        mine = [holder for holder in holders if not holder[0].endswith(LOG_SUFFIX)]
        return self.find("{}/{}".format(*mine[0])) if mine else None

    def register(self, folder: Path | str, name: str | None = None) -> Version:
        """Make an exported folder a version of `name` (default: its kind), and the candidate.

        The same package again is the same version; it only takes over an evaluation that was made since.
        """
        package = load_package(folder)
        name = name or package.kind
        if not _NAME.fullmatch(name) or name.endswith(LOG_SUFFIX):
            raise UserError(f"{name!r}: a name has letters, digits and . _ - only, and does not end in {LOG_SUFFIX}")
        known = self.with_digest(package.digest, name)
        version = known or self._create(package, name)
        self._record_evaluation(package, version)
        return self.find(f"{name}/{version.number}")

    def fetch(self, version: Version) -> Path:
        """The version's files on this machine, downloaded once; what is there was checked against its digest."""
        if not version.digest:
            raise UserError(f"{version.ref}: was not registered by Tessera, so nothing says how to load it")
        folder = cache_folder() / version.digest
        if not folder.is_dir():
            self.download(version, folder)
        return folder

    def download(self, version: Version, folder: Path) -> Package:
        """Copy the version's files to a new folder, whole or not at all.

        Raises:
            UserError: they are not what was registered.
        """
        import mlflow

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as place:
            with answering(self.uri):
                got = mlflow.artifacts.download_artifacts(version.source, dst_path=place, tracking_uri=self.uri)
            package = load_package(got)
            if package.digest != version.digest:
                raise UserError(
                    f"{version.ref}: its files have the digest {package.digest[:12]}, registered was"
                    f" {version.digest[:12]}: damaged or exchanged; register the model again"
                )
            if version.files_digest:
                try:
                    check_sums(Path(got), version.files_digest)
                except UserError as error:
                    raise UserError(f"{version.ref}: {error}; register the model again") from None
            try:
                Path(got).rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, with the same files
                    raise
        return load_package(folder)

    def data_manifest(self, version: Version) -> dict[str, Any] | None:
        """The list of shards that the version was trained on, if it was in reach when the version was registered."""
        import mlflow
        from mlflow.exceptions import MlflowException

        if not version.files_digest:
            return None
        with answering(self.uri), tempfile.TemporaryDirectory() as place:
            try:
                got = mlflow.artifacts.download_artifacts(
                    f"{version.source}/{DATA_MANIFEST}", dst_path=place, tracking_uri=self.uri
                )
            except (MlflowException, OSError):
                return None
            return dict(json.loads(Path(got).read_text()))

    def verify(self, version: Version) -> None:
        """Download the version anew and compare it with its digest.

        Raises:
            UserError: a file is missing, damaged or exchanged.
        """
        with tempfile.TemporaryDirectory() as place:
            self.download(version, Path(place) / "package")

    def adopt(self, folder: Path, name: str, tags: dict[str, str]) -> Version:
        """Make a folder that another registry gave out a version here, byte by byte."""
        return self._store(folder, load_package(folder), name, self._new_run(load_package(folder), name), tags)

    def _create(self, package: Package, name: str) -> Version:
        run = self._new_run(package, name)
        first_stage = self.with_digest(package.autoencoder.digest) if package.autoencoder else None
        tags = tags_of(package) | ({"autoencoder_version": first_stage.ref} if first_stage else {})
        with bundled(package, run.info.run_id) as folder:
            return self._store(folder, package, name, run, tags | {FILES_TAG: sums_digest(folder)})

    def _new_run(self, package: Package, name: str) -> "Run":
        with answering(self.uri):
            experiment = experiment_id(self.client, MODELS_EXPERIMENT)
            return self.client.create_run(experiment, tags=self._origin(package), run_name=name)

    def _store(self, folder: Path, package: Package, name: str, run: "Run", tags: dict[str, str]) -> Version:
        """Upload, then create the version: one that can be seen is complete."""
        with answering(self.uri):
            self.client.log_artifacts(run.info.run_id, str(folder), "package")
            self.client.set_terminated(run.info.run_id)
            card = (folder / CARD).read_text()[:DESCRIPTION_CHARACTERS]
            number = self._add_row(name, f"{run.info.artifact_uri}/package", run.info.run_id, tags, card)
            first = self.with_digest(package.digest, name)
            if first is not None and first.number != number:  # somebody registered it at the same time
                self.client.delete_model_version(name, str(number))
                self.client.delete_run(run.info.run_id)
                return first
            self.client.set_registered_model_alias(name, CANDIDATE, str(number))
        return self.find(f"{name}/{number}")

    def append(self, log: str, version: Version, tags: dict[str, str]) -> None:
        """Add an entry about `version` to a log, under the next number that the server gives out."""
        with answering(self.uri):
            self._add_row(log, version.source, version.run_id, tags)

    def _add_row(self, name: str, source: str, run_id: str, tags: dict[str, str], description: str = "") -> int:
        """A new version row of the model `name`, which is created if need be; its number."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return int(self.client.create_model_version(name, source, run_id, tags, description=description).version)

    def _origin(self, package: Package) -> dict[str, str]:
        """Tags that lead from the stored model to the training run, if that is on the same server."""
        experiment, uid = self.client.get_experiment_by_name(EXPERIMENT), package.lineage.get("run_uid")
        if experiment is None or not uid:
            return {}
        runs = self.client.search_runs([experiment.experiment_id], f"tags.`tessera.run_uid` = '{uid}'", max_results=1)
        return {"mlflow.parentRunId": runs[0].info.run_id} if runs else {}

    def _record_evaluation(self, package: Package, version: Version) -> None:
        """Store an evaluation.json that was made after the version."""
        if package.evaluation is None or package.evaluation == version.evaluation:
            return
        with answering(self.uri):
            for path in filter(Path.is_file, (package.folder / EVALUATION, package.folder / RECONSTRUCTIONS)):
                self.client.log_artifact(version.run_id, str(path), "package")
            for key, value in evaluation_tags(package).items():
                self.client.set_model_version_tag(version.name, str(version.number), key, value)

    def aliases(self, name: str) -> dict[str, int]:
        """The number of the version that each alias of a model points to."""
        from mlflow.exceptions import MlflowException

        with answering(self.uri):
            try:
                model = self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                names = self.names()
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none yet'}"
                raise UserError(f"{name}: no such registered model on {redact_text(self.uri)}; {hint}") from None
        return {alias: int(number) for alias, number in model.aliases.items()}


def _pages(search: Callable[..., Any], *words: str) -> list[Any]:
    """Everything that a search of MLflow finds, whose answers come in pages."""
    page = search(*words)
    found = list(page)
    while page.token:
        page = search(*words, page_token=page.token)
        found += page
    return found


def cache_folder() -> Path:
    """Where fetched models lie, by digest: TESSERA_CACHE, or tessera/ in the user's cache folder."""
    own = os.environ.get("TESSERA_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tessera" / "models"

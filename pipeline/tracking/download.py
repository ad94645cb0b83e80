"""The files of a version, brought here and compared with what was registered: a damaged or exchanged one is refused.

They are plain files; none of the code that lies beside them for `mlflow.pyfunc` is run (see `bundle`). Called by
`tessera registry`, by `promotion` and by `pipeline.export.resolve`.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pipeline.checkpoint.package import Package, load_package
from pipeline.config import UserError
from pipeline.tracking.bundle import DATA_MANIFEST, check_sums
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import answering
from pipeline.tracking.version import Version


def fetch(registry: Registry, version: Version) -> Path:
    """The version's files on this machine, downloaded once; what is there was checked against its digest.

    Raises:
        UserError: they are not what was registered, or another program registered them.
    """
    if not version.digest:
        raise UserError(f"{version.ref}: was not registered by Tessera, so nothing says how to load it")
    folder = cache_folder() / version.digest
    if not folder.is_dir():
        download(registry, version, folder)
    return folder


def verify(registry: Registry, version: Version) -> None:
    """Download the version anew and compare it with its digests.

    Raises:
        UserError: a file is missing, damaged or exchanged.
    """
    with tempfile.TemporaryDirectory() as place:
        download(registry, version, Path(place) / "package")


def download(registry: Registry, version: Version, folder: Path) -> Package:
    """Copy the version's files to a new folder, whole or not at all.

    Raises:
        UserError: they are not what was registered.
    """
    import mlflow

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as place:
        with answering(registry.uri):
            got = mlflow.artifacts.download_artifacts(version.source, dst_path=place, tracking_uri=registry.uri)
        _check(version, Path(got))
        try:
            Path(got).rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same files
                raise
    return load_package(folder)


def _check(version: Version, folder: Path) -> None:
    """Hash what came."""
    digest = load_package(folder).digest
    if digest != version.digest:
        raise UserError(
            f"{version.ref}: its files have the digest {digest[:12]}, registered was {version.digest[:12]}: damaged or"
            " exchanged; register the model again"
        )
    if version.files_digest:
        try:
            check_sums(folder, version.files_digest)
        except UserError as error:
            raise UserError(f"{version.ref}: {error}; register the model again") from None


def data_manifest(registry: Registry, version: Version) -> dict[str, Any] | None:
    """The list of shards that the version was trained on, if it was in reach when the version was registered."""
    import mlflow
    from mlflow.exceptions import MlflowException

    if not version.files_digest:
        return None
    source = f"{version.source}/{DATA_MANIFEST}"
    with answering(registry.uri), tempfile.TemporaryDirectory() as place:
        try:
            got = mlflow.artifacts.download_artifacts(source, dst_path=place, tracking_uri=registry.uri)
        except (MlflowException, OSError):
            return None
        return dict(json.loads(Path(got).read_text()))


def cache_folder() -> Path:
    """Where fetched models lie, by digest: TESSERA_CACHE, or tessera/ in the user's cache folder."""
    own = os.environ.get("TESSERA_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tessera" / "models"

"""The one door to MLflow: where the server is, a quiet client, and errors in one line.

MLflow is imported on the first call only. Called by the shipper and the registry.
"""

import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import UserError
from pipeline.redact import redact_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///runs/mlflow.db"
DEFAULT_ARTIFACTS = "runs/mlartifacts"
EXPERIMENT = "tessera"
KIND_TAG = "mlflow.experimentKind"
"""Tells MLflow's pages to show the runs of a training, and not the traces of a chat."""

_SETTINGS = {
    # MLflow's own defaults keep a caller of a dead server waiting for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


_SIGNS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted; name its CA in MLFLOW_TRACKING_SERVER_CERT_PATH",
    "error code 401": "user or password is wrong; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""What a user can do about an error whose own words hide it."""


class ServerError(UserError):
    """The tracking server did not answer, or refused: one line with its address."""


def tracking_uri(uri: str | None = None) -> str:
    """`uri`, or else MLFLOW_TRACKING_URI, or else a database in `runs/`; a path in it is made absolute."""
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    scheme, slashes, path = address.partition(":///")
    return f"{scheme}{slashes}{Path(path).absolute()}" if scheme == "sqlite" and path else address


def connect(uri: str | None = None) -> "MlflowClient":
    """A client of the tracking server; a local database is created when it is not there.

    Raises:
        UserError: MLflow does not know this kind of address, or lacks the driver for it.
        ServerError: the database cannot be opened.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")
    address = tracking_uri(uri)
    with answering(address), _one_creator(address):
        try:
            return mlflow.MlflowClient(address, registry_uri=address)
        except (UnsupportedModelRegistryStoreURIException, ImportError) as error:
            raise UserError(f"{redact_text(address)}: cannot be used as a tracking server: {one_line(error)}") from None


@contextmanager
def answering(uri: str | None = None) -> Iterator[None]:
    """Inside the block every failure of the server or of its database becomes a `ServerError`."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        raise ServerError(f"{redact_text(tracking_uri(uri))}: {one_line(error)}") from error


def experiment_id(client: "MlflowClient", name: str = EXPERIMENT) -> str:
    """The experiment of that name, made on first use; with a local database its artifacts lie in `runs/mlartifacts`."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = client.tracking_uri.startswith("sqlite:")
        try:
            place = Path(DEFAULT_ARTIFACTS).absolute().as_uri() if local else None
            return client.create_experiment(name, place, {KIND_TAG: "custom_model_development"})
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment.experiment_id


def one_line(error: Exception) -> str:
    """What an error says, without secrets and without the SQL, HTML or chain of wrapped errors that may follow."""
    text = redact_text(str(error).strip())
    for sign, meaning in _SIGNS.items():
        if sign in text:
            return meaning
    if "Max retries exceeded" in text or "NewConnectionError" in text:
        return "no answer; is the server running, and the address right?"
    return text.splitlines()[0][:240] if text else type(error).__name__


@contextmanager
def _one_creator(address: str) -> Iterator[None]:
    """Let one process at a time open a local database: two that create its tables at once break it."""
    match = re.fullmatch(r"sqlite:///(.+)", address)
    if match is None:
        yield
        return
    path = Path(match[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

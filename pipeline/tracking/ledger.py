"""The log of a model's promotions, and the aliases that follow it: compare-and-swap on a server that has none.

MLflow sets an alias blindly: of two people who promote at once both "win", and nobody knows later. Here every move is
an entry of a log, kept as the versions of a model `NAME.promotions`, whose numbers the server gives out one by one. An
entry counts only if it names the entry before it as the one it was decided on, so of two that were decided on the same
state exactly one counts; the aliases then follow the log. Called by `promotion`, and by `tessera registry show`.
"""

import getpass
import json
import os
import time
import uuid
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from pipeline.config import UserError
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import answering
from pipeline.tracking.version import CANDIDATE, LOG_SUFFIX, PREVIOUS, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENTRY_TAG = "entry"


class RacedError(UserError):
    """Somebody else moved an alias of this model in the meantime."""


@dataclass(frozen=True)
class Entry:
    """One move of an alias."""

    action: str
    """`promote` or `rollback`."""
    alias: str
    """What was moved."""
    version: int
    """The version that has it since."""
    before: int | None
    """The version that had it, and is `previous` since."""
    by: str
    """Name of the user's account."""
    time_ms: int
    """Milliseconds since 1970."""
    decided_on: int
    """Number of the entry that was the last one when this was decided; 0 for none."""
    token: str
    """Tells this entry from an equal one."""
    number: int = 0
    """Place in the log, given by the server."""


def account() -> str:
    """Who does this: the name of the user's account, or its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def current(registry: Registry, name: str, alias: str) -> Version | None:
    """Who holds the alias now."""
    number = registry.aliases(name).get(alias)
    return registry.find(f"{name}/{number}") if number else None


def history(registry: Registry, name: str) -> list[Entry]:
    """The moves that count, oldest first."""
    counting: list[Entry] = []
    for number, tags in registry.rows(f"{name}{LOG_SUFFIX}"):
        entry = Entry(**{**json.loads(tags[ENTRY_TAG]), "number": number})
        if entry.decided_on == head(counting):
            counting.append(entry)
    return counting


def head(log: list[Entry]) -> int:
    """Number of the newest entry; 0 for none."""
    return log[-1].number if log else 0


def finish_interrupted(registry: Registry, name: str) -> list[Entry]:
    """The history, after the aliases of its newest entry were set, if the promoter was killed before it could.

    An alias that was moved by hand since is left as it is.
    """
    log = history(registry, name)
    if log and log[-1].before != log[-1].version:
        holder = current(registry, name, log[-1].alias)
        if (holder.number if holder else None) == log[-1].before:
            _follow(registry, name)
    return log


def move(
    registry: Registry, version: Version, holder: Version | None, alias: str, action: str, decided_on: int
) -> None:
    """Append the move to the log; if it counts there, let the aliases follow.

    Raises:
        RacedError: another move was appended since entry `decided_on`; nothing was changed.
    """
    before = holder.number if holder else None
    now_ms, token = time.time_ns() // 1_000_000, uuid.uuid4().hex
    entry = Entry(action, alias, version.number, before, account(), now_ms, decided_on, token)
    registry.append(f"{version.name}{LOG_SUFFIX}", version, {ENTRY_TAG: json.dumps(asdict(entry))})
    log = history(registry, version.name)
    if token not in {entry.token for entry in log}:
        raise RacedError(
            f"{version.name}: somebody else moved {log[-1].alias} to version {log[-1].version} after this was decided;"
            " nothing was changed, look at it and try again"
        )
    _follow(registry, version.name)


def _follow(registry: Registry, name: str) -> None:
    """Set the aliases of the newest entry, until it is still the newest afterwards: a slower mover cannot undo them.

    `previous` comes first: whoever is killed in between leaves the old champion, and never none.
    """
    client, last = registry.client, None
    while last != (last := history(registry, name)[-1]):
        with answering(registry.uri):
            if last.before is not None and last.before != last.version:
                client.set_registered_model_alias(name, PREVIOUS, str(last.before))
            client.set_registered_model_alias(name, last.alias, str(last.version))
            if CANDIDATE in registry.find(f"{name}/{last.version}").aliases:
                _take_candidate_away(client, name)


def _take_candidate_away(client: "MlflowClient", name: str) -> None:
    """It has been promoted. On a server with passwords only those who may delete the model may remove an alias: for
    others it stays where it is, until the next registration moves it."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_registered_model_alias(name, CANDIDATE)
    except MlflowException as error:
        if error.get_http_status_code() != HTTPStatus.FORBIDDEN:
            raise

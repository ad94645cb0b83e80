"""Which version is live: promotion and rollback as transactions, with the gates in front and a history behind.

MLflow sets an alias blindly: of two people who promote at once both "win", and nobody knows later. Here every move is
an entry of a log, kept as the versions of a model `NAME.promotions`, whose numbers the server gives out one by one. An
entry counts only if it names the entry before it as the one it was decided on, so of two that were decided on the same
state exactly one counts; the alias then follows the log. Called by `tessera registry promote` and `rollback`.
"""

import getpass
import json
import time
import uuid
from dataclasses import asdict, dataclass

from pipeline.checkpoint.package import UNET_KIND, load_package
from pipeline.config import UserError
from pipeline.tracking.gates import GateConfig, Verdict, judge
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import answering
from pipeline.tracking.version import CANDIDATE, CHAMPION, LOG_SUFFIX, PREVIOUS, Version

ENTRY_TAG = "entry"
VERDICTS_TAG = "gates"


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


@dataclass(frozen=True)
class Decision:
    """What came of a promotion."""

    version: Version
    """The version that was judged."""
    champion: Version | None
    """Who held the alias before."""
    verdicts: list[Verdict]
    """The gates' answers."""

    @property
    def passed(self) -> bool:
        """True when it was promoted."""
        return all(verdict.passed for verdict in self.verdicts)


def promote(registry: Registry, version: Version, gates: GateConfig, alias: str = CHAMPION) -> Decision:
    """Give `alias` to `version` if it passes every gate; the former holder becomes `previous`.

    Raises:
        RacedError: another promotion came in between; nothing was changed.
        UserError: the version's files are damaged.
    """
    head, holder = _head(history(registry, version.name)), current(registry, version.name, alias)
    registry.verify(version)
    package = load_package(registry.fetch(version))
    inner = package.lineage.get("autoencoder_digest") if package.kind == UNET_KIND else None
    first = registry.with_digest(inner) if inner else None
    rival = holder.evaluation if holder and holder.number != version.number else None
    verdicts = judge(package, version.evaluation, rival, first.ref if first else None, gates)
    decision = Decision(version, holder, verdicts)
    _record_verdicts(registry, version, alias, decision)
    if decision.passed:
        _move(registry, version, holder, alias, "promote", head)
    return decision


def rollback(registry: Registry, name: str, alias: str = CHAMPION) -> Version:
    """Exchange the holder of `alias` with `previous`, whose files are verified first; returns the new holder.

    Raises:
        RacedError: a promotion came in between.
        UserError: there is no previous version, or its files are damaged.
    """
    head, holder = _head(history(registry, name)), current(registry, name, alias)
    former = current(registry, name, PREVIOUS)
    if former is None:
        raise UserError(f"{name}: no version is called {PREVIOUS}, so there is nothing to go back to")
    registry.verify(former)
    _move(registry, former, holder, alias, "rollback", head)
    return registry.find(f"{name}/{former.number}")


def current(registry: Registry, name: str, alias: str) -> Version | None:
    """Who holds the alias now."""
    return next((version for version in registry.versions(name) if alias in version.aliases), None)


def history(registry: Registry, name: str) -> list[Entry]:
    """The moves that count, oldest first."""
    with answering(registry.uri):
        found = registry.client.search_model_versions(f"name='{name}{LOG_SUFFIX}'")
    counting: list[Entry] = []
    for row in sorted(found, key=lambda row: int(row.version)):
        entry = Entry(**{**json.loads(row.tags[ENTRY_TAG]), "number": int(row.version)})
        if entry.decided_on == _head(counting):
            counting.append(entry)
    return counting


def _head(log: list[Entry]) -> int:
    return log[-1].number if log else 0


def _move(
    registry: Registry, version: Version, holder: Version | None, alias: str, action: str, decided_on: int
) -> None:
    """Append the move to the log; if it counts there, let the aliases follow."""
    before = holder.number if holder else None
    now_ms, token = time.time_ns() // 1_000_000, uuid.uuid4().hex
    entry = Entry(action, alias, version.number, before, getpass.getuser(), now_ms, decided_on, token)
    registry.append(f"{version.name}{LOG_SUFFIX}", version, {ENTRY_TAG: json.dumps(asdict(entry))})
    log = history(registry, version.name)
    if token not in {entry.token for entry in log}:
        raise RacedError(
            f"{version.name}: somebody else moved {log[-1].alias} to version {log[-1].version} after this was decided;"
            " nothing was changed, look at it and try again"
        )
    _follow(registry, version.name)


def _follow(registry: Registry, name: str) -> None:
    """Set the aliases of the newest entry, until it is still the newest afterwards: a slower mover cannot undo them."""
    client, last = registry.client, None
    while last != (last := history(registry, name)[-1]):
        with answering(registry.uri):
            if last.before is not None and last.before != last.version:
                client.set_registered_model_alias(name, PREVIOUS, str(last.before))
            client.set_registered_model_alias(name, last.alias, str(last.version))
            if CANDIDATE in registry.find(f"{name}/{last.version}").aliases:
                client.delete_registered_model_alias(name, CANDIDATE)


def _record_verdicts(registry: Registry, version: Version, alias: str, decision: Decision) -> None:
    """The verdicts as a tag of the version, also when it was refused."""
    record = {"alias": alias, "passed": decision.passed, "verdicts": [asdict(verdict) for verdict in decision.verdicts]}
    with answering(registry.uri):
        registry.client.set_model_version_tag(version.name, str(version.number), VERDICTS_TAG, json.dumps(record))

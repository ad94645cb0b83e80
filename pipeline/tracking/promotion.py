"""Which version is live: promotion and rollback as transactions, with the gates in front and a history behind.

A promotion is judged on a state of the log and counts only if that is still the state when it is written down (see
`ledger`). Called by `tessera registry promote`, `rollback` and `approve`.
"""

import json
from dataclasses import asdict, dataclass

from pipeline.checkpoint.package import UNET_KIND, load_package
from pipeline.config import UserError
from pipeline.tracking.download import fetch, verify
from pipeline.tracking.gates import Facts, GateConfig, Verdict, judge
from pipeline.tracking.ledger import account, current, finish_interrupted, head, move
from pipeline.tracking.registry import Registry
from pipeline.tracking.server import answering
from pipeline.tracking.version import APPROVAL_TAG, CHAMPION, PREVIOUS, VERDICTS_TAG, Version


@dataclass(frozen=True)
class Decision:
    """What the gates say about a promotion."""

    version: Version
    """The version that was judged."""
    champion: Version | None
    """Who held the alias before."""
    verdicts: list[Verdict]
    """The gates' answers."""

    @property
    def passed(self) -> bool:
        """True when every gate lets it through."""
        return all(verdict.passed for verdict in self.verdicts)


def assess(registry: Registry, version: Version, gates: GateConfig, alias: str = CHAMPION) -> Decision:
    """What `promote` would decide now; changes nothing.

    Raises:
        UserError: the version's files are damaged.
    """
    holder = current(registry, version.name, alias)
    verify(registry, version)
    package = load_package(fetch(registry, version))
    inner = package.lineage.get("autoencoder_digest") if package.kind == UNET_KIND else None
    first = registry.with_digest(inner) if inner else None
    facts = Facts(
        evaluation=version.evaluation,
        champion=holder.evaluation if holder and holder.number != version.number else None,
        autoencoder=first.ref if first else None,
        approved_by=version.tags.get(APPROVAL_TAG),
    )
    return Decision(version, holder, judge(package, facts, gates))


def promote(registry: Registry, version: Version, gates: GateConfig, alias: str = CHAMPION) -> Decision:
    """Give `alias` to `version` if it passes every gate; the former holder becomes `previous`.

    Raises:
        RacedError: another promotion came in between; nothing was changed.
        UserError: the version's files are damaged.
    """
    decided_on = head(finish_interrupted(registry, version.name))
    decision = assess(registry, version, gates, alias)
    _record_verdicts(registry, version, alias, decision)
    if decision.passed:
        move(registry, version, decision.champion, alias, "promote", decided_on)
    return decision


def rollback(registry: Registry, name: str, alias: str = CHAMPION) -> Version:
    """Exchange the holder of `alias` with `previous`, whose files are verified first; returns the new holder.

    Raises:
        RacedError: a promotion came in between.
        UserError: there is no previous version, or its files are damaged.
    """
    decided_on, holder = head(finish_interrupted(registry, name)), current(registry, name, alias)
    former = current(registry, name, PREVIOUS)
    if former is None:
        raise UserError(f"{name}: no version is called {PREVIOUS}, so there is nothing to go back to")
    verify(registry, former)
    move(registry, former, holder, alias, "rollback", decided_on)
    return registry.find(f"{name}/{former.number}")


def approve(registry: Registry, version: Version) -> Version:
    """Write down that a person looked at the version and wants it; gates may ask for that."""
    with answering(registry.uri):
        registry.client.set_model_version_tag(version.name, str(version.number), APPROVAL_TAG, account())
    return registry.find(version.ref)


def _record_verdicts(registry: Registry, version: Version, alias: str, decision: Decision) -> None:
    """The verdicts as tags of the version, also when it was refused: all in one, and one for each gate."""
    record = {"alias": alias, "passed": decision.passed, "verdicts": [asdict(verdict) for verdict in decision.verdicts]}
    tags = {VERDICTS_TAG: json.dumps(record)}
    for verdict in decision.verdicts:
        word = "passed" if verdict.passed else "FAILED"
        tags[f"gate.{verdict.gate}"] = f"{word}: {verdict.value}, asked for {verdict.bound}"
    with answering(registry.uri):
        for key, value in tags.items():
            registry.client.set_model_version_tag(version.name, str(version.number), key, value)

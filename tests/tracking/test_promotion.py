"""Promotion on a real MLflow store: gates first, one winner of every race, and a killed promoter leaves no gap."""

import json
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.tracking import promotion
from pipeline.tracking.download import verify
from pipeline.tracking.gates import GateConfig
from pipeline.tracking.ledger import RacedError, current, history
from pipeline.tracking.promotion import approve, promote, rollback
from pipeline.tracking.registration import register
from pipeline.tracking.registry import Registry
from pipeline.tracking.version import Version
from tests.tracking.packages import FREE, package, race


def test_promotion_rollback_history(registry: Registry, tmp_path: Path) -> None:
    one, two = (register(registry, package(tmp_path / str(i), float(i)).folder) for i in (1, 2))
    assert promote(registry, one, FREE).passed
    assert promote(registry, two, FREE).champion is not None
    assert registry.find("vq-autoencoder@champion").number == 2
    assert registry.find("vq-autoencoder@previous").number == 1
    assert current(registry, "vq-autoencoder", "candidate") is None
    assert rollback(registry, "vq-autoencoder").number == 1
    assert registry.find("vq-autoencoder@previous").number == 2
    moves = [(move.action, move.before, move.version) for move in history(registry, "vq-autoencoder")]
    assert moves == [("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)]
    assert registry.names() == ["vq-autoencoder"]


@pytest.mark.parametrize("setting", range(3))
def test_a_promoter_killed_between_any_two_requests(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: int
) -> None:
    """The old or the new champion is there, never none; the next one who moves something ends what was begun."""
    one, two = (register(registry, package(tmp_path / str(i), float(i)).folder) for i in (1, 2))
    promote(registry, one, FREE)
    genuine, calls = registry.client.set_registered_model_alias, []

    def dies(*words: str) -> None:
        if len(calls) == setting:
            raise KeyboardInterrupt
        calls.append(words)
        genuine(*words)

    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", dies)
        if setting < 2:
            with pytest.raises(KeyboardInterrupt):
                promote(registry, two, FREE)
        else:
            promote(registry, two, FREE)
    assert registry.find("vq-autoencoder@champion").number == (1 if setting < 2 else 2)
    assert rollback(registry, "vq-autoencoder").number == 1
    assert [move.version for move in history(registry, "vq-autoencoder")] == [1, 2, 1]
    assert registry.find("vq-autoencoder@previous").number == 2


def test_an_alias_moved_by_hand_stays_until_the_next_promotion(registry: Registry, tmp_path: Path) -> None:
    one, two, three = (register(registry, package(tmp_path / str(i), float(i)).folder) for i in (1, 2, 3))
    promote(registry, one, FREE)
    registry.client.set_registered_model_alias("vq-autoencoder", "champion", "3")
    champion = promote(registry, two, FREE).champion
    assert champion is not None and champion.number == three.number
    assert registry.find("vq-autoencoder@previous").number == 3


def test_nothing_to_roll_back_to(registry: Registry, tmp_path: Path) -> None:
    promote(registry, register(registry, package(tmp_path / "m").folder), FREE)
    with pytest.raises(UserError, match="nothing to go back to"):
        rollback(registry, "vq-autoencoder")


def test_a_refusal_changes_nothing_but_is_written_down(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, package(tmp_path / "m", psnr=None).folder)
    assert not promote(registry, version, FREE).passed
    again = registry.find(version.ref)
    assert again.aliases == ("candidate",) and history(registry, "vq-autoencoder") == []
    assert not json.loads(again.tags["gates"])["passed"]


def test_approval_by_a_person(registry: Registry, tmp_path: Path) -> None:
    asks = GateConfig(approval=True)
    version = register(registry, package(tmp_path / "m").folder)
    assert [v.gate for v in promote(registry, version, asks).verdicts if not v.passed] == ["approval"]
    assert promote(registry, approve(registry, version), asks).passed


def test_a_unet_of_an_unregistered_autoencoder_is_refused(registry: Registry, tmp_path: Path) -> None:
    first = package(tmp_path / "first")
    second = register(registry, package(tmp_path / "second", inner=first.folder).folder)
    (verdict,) = [v for v in promote(registry, second, FREE).verdicts if not v.passed]
    assert verdict.gate == "autoencoder"
    register(registry, first.folder)
    assert promote(registry, second, FREE).passed
    third = register(registry, package(tmp_path / "third", 3.0, inner=first.folder).folder)
    assert third.tags["autoencoder_version"] == "models:/vq-autoencoder/1"


def test_of_two_decisions_on_one_state_the_second_loses(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (register(registry, package(tmp_path / str(i), float(i)).folder) for i in (1, 2))
    calls: list[Version] = []

    def somebody_is_faster(registry: Registry, version: Version) -> None:
        verify(registry, version)
        calls.append(version)
        if len(calls) == 1:
            promote(registry, two, FREE)

    monkeypatch.setattr(promotion, "verify", somebody_is_faster)
    with pytest.raises(RacedError, match="champion to version 2"):
        promote(registry, one, FREE)
    assert registry.find("vq-autoencoder@champion").number == 2
    assert [move.version for move in history(registry, "vq-autoencoder")] == [2]


def test_racing_promoters_have_one_winner_each_time(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [register(registry, package(tmp_path / str(i), float(i)).folder) for i in range(3)]
    for _ in range(3):
        before = len(history(registry, "vq-autoencoder"))
        won = race(monkeypatch, versions)
        moves = history(registry, "vq-autoencoder")
        assert len(won) == 1 and len(moves) == before + 1
        assert moves[-1].version == won[0] == registry.find("vq-autoencoder@champion").number

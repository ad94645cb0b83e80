"""A launcher's file asks for a stop as a signal does, and one rank's word is enough for all."""

from pathlib import Path

import pytest

from pipeline.distributed.process import STOP_FILE, any_rank, finish, start, stop_on_signals
from tests.ranks import run_ranks


def test_the_file_asks_for_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "STOP"))
    with stop_on_signals() as stop:
        assert not stop.requested
        (tmp_path / "STOP").touch()
        assert stop.requested


def test_without_a_launcher_no_file_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STOP_FILE, raising=False)
    with stop_on_signals() as stop:
        assert not stop.requested


def look_on_each_rank(path: str) -> tuple[bool, bool]:
    import os

    os.environ[STOP_FILE] = path
    start()
    with stop_on_signals() as stop:
        own, agreed = stop.requested, any_rank(stop.requested)
    finish()
    return own, agreed


def test_one_rank_looks_and_all_agree(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert run_ranks(look_on_each_rank, 2, str(tmp_path / "STOP")) == [(True, True), (False, True)]

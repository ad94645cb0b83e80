"""Signals and a launcher's file ask for a stop, one rank's word is enough for all, and a refusal is told."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.distributed.process import any_rank, finish, start
from pipeline.distributed.stop import REFUSED_FILE, SLURM_END, SLURM_START, STOP_FILE, refusal_noted, stop_on_signals
from tests.ranks import run_ranks


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_only_raise_a_flag_inside_the_block(number: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


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
    os.environ[STOP_FILE] = path
    start()
    with stop_on_signals() as stop:
        own, agreed = stop.requested, any_rank(stop.requested)
    finish()
    return own, agreed


def test_one_rank_looks_and_all_agree(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert run_ranks(look_on_each_rank, 2, str(tmp_path / "STOP")) == [(True, True), (False, True)]


def test_a_user_s_mistake_is_told_to_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFUSED_FILE, str(tmp_path / "REFUSED"))
    with pytest.raises(OSError), refusal_noted():
        raise OSError("the disk, which may be there again next time")
    assert not (tmp_path / "REFUSED").exists()
    with pytest.raises(UserError), refusal_noted():
        raise UserError("no such folder")
    assert (tmp_path / "REFUSED").exists()


@pytest.mark.parametrize(
    ("length", "left", "wanted"), [(7200, 400, False), (7200, 290, True), (600, 100, False), (600, 50, True)]
)
def test_a_job_of_another_script_stops_before_its_time_is_up(
    length: int, left: int, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = int(time.time()) + left
    monkeypatch.setenv(SLURM_END, str(end))
    monkeypatch.setenv(SLURM_START, str(end - length))
    with stop_on_signals() as stop:
        assert stop.requested == wanted
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "STOP"))  # our own script says when, and has to know that it did
    with stop_on_signals() as stop:
        assert not stop.requested

"""The parts of a run's time, on journals whose clock is set by hand."""

import pytest

from pipeline.tracking.effective import breakdown
from pipeline.tracking.journal import Event, Kind


def event(attempt: int, second: float, kind: Kind, samples_seen: int = 0, **body: object) -> Event:
    return Event(kind, attempt, int(1000 * second), samples_seen, body)


def figures(attempt: int, second: float, step: int) -> Event:
    """A step each second, ten samples each."""
    return event(attempt, second, "metrics", 10 * step, step=step, values={"steps_per_second": 1.0})


QUIET = [event(0, 100, "started"), figures(0, 115, 5), figures(0, 120, 10), event(0, 121, "ended")]


def test_a_run_in_one_go() -> None:
    found = breakdown(QUIET)
    assert (found.starting, found.productive, found.redone, found.down) == (10, 11, 0, 0)
    assert found.ettr == pytest.approx(11 / 21)


def test_steps_behind_the_checkpoint_were_done_again() -> None:
    killed = [
        *(event(0, 0, "started"), figures(0, 11, 1), figures(0, 12, 2)),
        event(0, 13, "committed", 20, stall_seconds=0.5),
        *(figures(0, 13, 3), figures(0, 14, 4)),  # killed here
        *(event(1, 30, "started"), event(1, 31, "params")),  # and here, before its first step
        *(event(2, 40, "started"), event(2, 45, "resumed", 20), figures(2, 46, 3), event(2, 47, "ended")),
    ]
    found = breakdown(killed)
    assert found.redone == 2
    assert found.down == 16 + 9
    assert found.starting == 10 + 1 + 5
    assert found.checkpoint_stall == 0.5
    assert found.productive == 1.5 + 2
    assert found.total == 47


def test_an_empty_journal() -> None:
    assert breakdown([]).ettr == 1.0

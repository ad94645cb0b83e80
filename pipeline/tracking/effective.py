"""Where the time of a run went, over all its starts: the effective training time ratio (ETTR) and its parts.

Arithmetic on the journal alone. Called by the report and by `benchmarks.chaos`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pipeline.tracking.journal import Event

PROGRESS = ("metrics", "picture", "committed")


@dataclass(frozen=True)
class Breakdown:
    """Seconds of wall clock from the first event of a run to its last; the parts add up to `total`."""

    productive: float
    """Steps that count, with the validation and pictures between them."""
    redone: float
    """Steps that were done again, since they came after the last generation that was whole."""
    checkpoint_stall: float
    """Steps stood still for a checkpoint."""
    starting: float
    """From the first word of a start to its first step: models, data, restoring."""
    down: float
    """From the last word of a start to the first of the next: noticing the failure, queue, start of the processes."""

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part by its name."""
        return asdict(self)

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def ettr(self) -> float:
        """Productive share; 1 for a run without a second."""
        return self.productive / self.total if self.total > 0 else 1.0

    def __str__(self) -> str:
        shares = ", ".join(f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in self.parts.items())
        return f"ETTR {self.ettr:.1%} of {self.total:.0f} s: {shares}"


def breakdown(events: Iterable[Event]) -> Breakdown:
    """The parts of a run.

    Args:
        events: all of them, superseded ones too (`journal.read_all_events`).
    """
    starts: dict[int, list[Event]] = {}
    for event in events:
        starts.setdefault(event.attempt, []).append(event)
    attempts = list(starts.values())
    parts = [_of_start(own, _kept_until(attempts[n + 1 :])) for n, own in enumerate(attempts)]
    productive, redone, stall, starting = (sum(column) for column in zip(*parts, strict=True)) if parts else [0.0] * 4
    down = sum(b[0].time_ms - a[-1].time_ms for a, b in zip(attempts, attempts[1:], strict=False)) / 1000
    return Breakdown(productive, redone, stall, starting, max(down, 0.0))


def _of_start(events: list[Event], kept_until: int | None) -> tuple[float, float, float, float]:
    """(productive, redone, checkpoint stall, starting) of one start; what lies behind `kept_until` was done again."""
    begin, first, end = events[0].time_ms / 1000, _first_step(events), events[-1].time_ms / 1000
    settled = end
    if kept_until is not None:
        counted = [e.time_ms / 1000 for e in events if e.kind == "metrics" and e.samples_seen <= kept_until]
        settled = max([first, *counted])
    stall = min(sum(e.body.get("stall_seconds", 0.0) for e in events if e.kind == "committed"), settled - first)
    return settled - first - stall, end - settled, stall, first - begin


def _first_step(events: list[Event]) -> float:
    """When the first step of a start began: once restored, or its first figures less the steps that led to them."""
    for event in events:
        if event.kind == "resumed":
            return event.time_ms / 1000
        if event.kind == "metrics" and (rate := event.body["values"].get("steps_per_second")):
            return max(event.time_ms / 1000 - event.body["step"] / rate, events[0].time_ms / 1000)
    return events[-1].time_ms / 1000


def _kept_until(later: list[list[Event]]) -> int | None:
    """Samples seen where the next of the `later` starts that came to train went on; None when none did."""
    for events in later:
        if any(event.kind in PROGRESS for event in events):
            return next((event.samples_seen for event in events if event.kind == "resumed"), 0)
    return None

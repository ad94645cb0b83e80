"""Where this rank is in its work: step, phase and shard, for the watchdog to tell when it goes no further.

One per process, like a logger: the trainer and the reader of data note their place in it, the watchdog's thread looks.
"""

from dataclasses import asdict, dataclass
from typing import Any

PATIENT = ("start", "validation", "preview", "checkpoint")
"""Phases that take as long as they take: of these the watchdog only notices that a process is gone or stopped."""


@dataclass
class Beacon:
    """The place. Plain assignments, so that noting it costs nothing."""

    step: int = 0
    """Optimizer steps made."""
    phase: str = "start"
    """`start`, `data`, `step`, `validation`, `preview` or `checkpoint`."""
    shard: str = ""
    """What of the data was asked for last."""

    def note(self, phase: str, step: int | None = None) -> None:
        """A phase begins."""
        self.phase = phase
        if step is not None:
            self.step = step

    def place(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


BEACON = Beacon()
"""This process's."""

"""One race: the sides take turns, round by round, so that a noisy machine disturbs them alike."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median


class Stopwatch:
    """Adds up the time inside its blocks: what a side does outside them is not raced."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Side:
    """One competitor."""

    name: str
    """With its version, unless it is ours."""
    run: Callable[[Stopwatch], int]
    """One round; returns the units of work that it did while the watch was running."""


@dataclass
class Result:
    """What came out: the median of each side, and how many times the second's is the first's."""

    title: str
    unit: str
    medians: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """First side over second."""
        ours, theirs = self.medians.values()
        return ours / theirs

    def __str__(self) -> str:
        rows = [f"  {name:<28} {value:10.1f} {self.unit}" for name, value in self.medians.items()]
        return "\n".join([self.title, *rows, f"  {'ratio':<28} {self.ratio:10.2f}"])


def race(title: str, unit: str, sides: Sequence[Side], num_rounds: int = 5) -> Result:
    """Units per second of each side: the median of `num_rounds`, after one round each that does not count."""
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(num_rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            watch = Stopwatch()
            units = side.run(watch)
            if number > 0:
                rates[side.name].append(units / watch.seconds)
    return Result(title, unit, {name: median(values) for name, values in rates.items()})

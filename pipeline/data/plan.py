"""Which sample stands at each place of a run: datasets, selections, weights and buckets put together. No state.

A run asks for positions of one endless axis. An interleave says which `Axis` (a dataset, or one bucket of it) serves a
position, and how far that axis has come by then; the axis says in which epoch of its own that is, and which of its
samples. Samples have two numbers: an id (its place in the datasets, one behind the other: the key of its draws) and a
place (the axes one behind the other, each beginning a new block: what is fetched together). Called by the loader, by
`tessera-data verify-epoch` and by nothing that opens files.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.data.members import Members
from pipeline.data.order import SampleOrder


class Interleave(Protocol):
    """How the axes share the positions of a run."""

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the axis, position on that axis), int64 [n] both, of positions int64 [n]."""
        ...


@dataclass(frozen=True)
class Axis:
    """One endless supply of samples."""

    order: SampleOrder
    first_place: int
    """Where its places begin: a multiple of the block."""
    first_id: int
    """Id of the first sample of its dataset."""
    members: Members | None = None
    """Which samples of the dataset it holds; None is all."""

    def ids(self, places: np.ndarray) -> np.ndarray:
        """Sample ids of its places, int64 [n]."""
        local = places - self.first_place
        return self.first_id + (local if self.members is None else self.members.ids(local))


@dataclass(frozen=True)
class Plan:
    """A pure function of the datasets, the seed and the config."""

    axes: tuple[Axis, ...]
    interleave: Interleave | None
    """None for a single axis."""

    @property
    def num_samples(self) -> int:
        """Samples of all axes."""
        return sum(axis.order.num_samples for axis in self.axes)

    def places_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, places), int64 [n] both; an epoch counts how often the sample's own axis has gone round."""
        if self.interleave is None:
            return self._on_axis(self.axes[0], positions)
        epochs, places = np.empty_like(positions), np.empty_like(positions)
        numbers, own = self.interleave.split(positions)
        for number in np.unique(numbers):
            chosen = numbers == number
            epochs[chosen], places[chosen] = self._on_axis(self.axes[number], own[chosen])
        return epochs, places

    def sample_ids(self, places: np.ndarray) -> np.ndarray:
        """Sample ids, int64 [n], of places int64 [n]."""
        if len(self.axes) == 1:
            return self.axes[0].ids(places)
        ids, numbers = np.empty_like(places), np.searchsorted(self._first_places(), places, side="right") - 1
        for number in np.unique(numbers):
            chosen = numbers == number
            ids[chosen] = self.axes[number].ids(places[chosen])
        return ids

    def substitute(self, epoch: int, place: int, attempt: int) -> int:
        """The place that stands in for an unreadable one: another one of its own axis."""
        axis = self.axis_of(place)
        return axis.first_place + axis.order.substitute(epoch, place - axis.first_place, attempt)

    def axis_of(self, place: int) -> Axis:
        """The axis that a place lies on."""
        return self.axes[bisect_right(self._first_places(), place) - 1]

    def _on_axis(self, axis: Axis, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = axis.order.samples_at(positions)
        return epochs, axis.first_place + places

    def _first_places(self) -> list[int]:
        return [axis.first_place for axis in self.axes]


def next_block(place: int, block_samples: int) -> int:
    """The first multiple of `block_samples` that is not below `place`: no block belongs to two axes."""
    return -(-place // block_samples) * block_samples

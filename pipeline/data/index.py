"""Where samples lie: id -> shard, block of places -> byte ranges. A few bytes for each block, read when first needed.

A block of places is one byte range of one tar where its samples are neighbours there; two and more where it straddles
shards, or where samples between them are left out (small gaps are read along). Of each `.tar.idx` only the offsets at
block boundaries are kept; of datasets that are read in part, the whole indexes of the shards used last. Called by the
source, which fetches blocks, and by the reader, which names a bad sample's shard.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.plan import Plan
from pipeline.data.shards import ShardRecord, index_name, read_index
from pipeline.retry import patiently

SMALL_GAP_BYTES = 1 << 15
"""A gap between two wanted samples that is cheaper to read than to jump over."""

NUM_WHOLE_INDEXES = 256
"""Indexes of shards kept whole, for datasets that are read in part."""


@dataclass(frozen=True)
class ByteRange:
    """Bytes [start, stop) of one shard: whole samples, of which those at `wanted` count."""

    url: str
    start: int
    stop: int
    num_samples: int
    wanted: tuple[int, ...] | None = None
    """Places among the samples of the range; None is all."""

    def follows(self, other: "ByteRange") -> bool:
        """It begins where `other` ends."""
        return (self.url, self.start) == (other.url, other.stop)


class ShardTable:
    """The shards of one or several datasets on the axis of sample ids.

    Args:
        datasets: (url, shards, id of its first sample) of each, ascending.
    """

    def __init__(self, datasets: Sequence[tuple[str, Sequence[ShardRecord], int]]) -> None:
        self._folders = [url for url, shards, _ in datasets for _ in shards]
        self._records = [record for _, shards, _ in datasets for record in shards]
        counts = [np.array([s.num_samples for s in shards], dtype=np.int64) for _, shards, _ in datasets]
        self._begin = np.concatenate([f + np.cumsum(c) - c for c, (_, _, f) in zip(counts, datasets, strict=True)])
        self._end = self._begin + np.concatenate(counts)
        self._single = len(datasets) == 1

    def locate(self, sample_id: int) -> tuple[str, int]:
        """(shard, place inside it) of a sample: the shard's name, with its folder where there are several datasets."""
        shard = self.shard_of(sample_id)
        name = self._records[shard].name if self._single else self.url(shard)
        return name, sample_id - int(self._begin[shard])

    def url(self, shard: int) -> str:
        """Address of the tar."""
        return storage.join(self._folders[shard], self._records[shard].name)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Ids of its first sample and of the one behind its last."""
        return int(self._begin[shard]), int(self._end[shard])

    def shard_of(self, sample_id: int) -> int:
        """Number of the shard that holds a sample (shards without samples hold none)."""
        return int(np.searchsorted(self._begin, sample_id, side="right")) - 1

    def offsets(self, shard: int) -> np.ndarray:
        """uint64 [n + 1] of its `.tar.idx`.

        Raises:
            UserError: it is missing, or does not fit the manifest.
        """
        record, folder = self._records[shard], self._folders[shard]
        offsets = patiently(lambda: read_index(storage.join(folder, index_name(record.name))))
        if len(offsets) != record.num_samples + 1:
            raise UserError(
                f"{record.name}: its index has {len(offsets) - 1} samples, the manifest {record.num_samples};"
                f" write both again with `tessera-data index {folder}`"
            )
        return offsets


class BlockIndex:
    """The byte ranges of every block of places; safe to call from several threads."""

    def __init__(self, shards: ShardTable, plan: Plan, block_samples: int) -> None:
        self.shards = shards
        self._plan = plan
        self._block_samples = block_samples
        self._boundaries: dict[int, np.ndarray] = {}
        self._locks: dict[int, Lock] = {}
        self._whole = lru_cache(NUM_WHOLE_INDEXES)(shards.offsets)

    def block_of(self, place: int) -> int:
        """The block that holds a place."""
        return place // self._block_samples

    def place_in_block(self, place: int) -> int:
        """Number of a place among those of its block."""
        return place % self._block_samples

    def shard_of(self, block: int) -> int:
        """Number of the shard that holds the first sample of a block."""
        place = block * self._block_samples
        return self.shards.shard_of(int(self._plan.axis_of(place).ids(np.array([place]))[0]))

    def ranges(self, block: int) -> list[ByteRange]:
        """The byte ranges of a block, in the order of its places.

        Raises:
            UserError: an index is missing or does not fit the manifest.
        """
        first = block * self._block_samples
        axis = self._plan.axis_of(first)
        last = min(first + self._block_samples, axis.first_place + axis.order.num_samples)
        if axis.members is not None:
            return list(self._in_part(axis.ids(np.arange(first, last))))
        shift = axis.first_id - axis.first_place
        return list(self._neighbours(first + shift, last + shift))

    def _neighbours(self, first: int, last: int) -> Iterator[ByteRange]:
        """All samples [first, last): a range for each shard that they lie in."""
        while first < last:
            shard = self.shards.shard_of(first)
            stop = min(last, self.shards.bounds(shard)[1])
            start_byte, stop_byte = self._boundary(shard, first), self._boundary(shard, stop)
            yield ByteRange(self.shards.url(shard), start_byte, stop_byte, stop - first)
            first = stop

    def _in_part(self, ids: np.ndarray) -> Iterator[ByteRange]:
        """Some samples, ascending: a range for each run of them with small gaps at most."""
        shards = np.array([self.shards.shard_of(sample_id) for sample_id in ids])
        for shard in np.unique(shards).tolist():
            places = ids[shards == shard] - self.shards.bounds(shard)[0]
            offsets = self._whole(shard)
            gaps = offsets[places[1:]] - offsets[places[:-1] + 1]
            for run in np.split(places, np.flatnonzero(gaps > SMALL_GAP_BYTES) + 1):
                begin, end = int(run[0]), int(run[-1]) + 1
                wanted = None if len(run) == end - begin else tuple((run - begin).tolist())
                yield ByteRange(self.shards.url(shard), int(offsets[begin]), int(offsets[end]), end - begin, wanted)

    def _boundary(self, shard: int, sample_id: int) -> int:
        """Byte offset in `shard` at which `sample_id` starts, or the shard's samples end."""
        with self._locks.setdefault(shard, Lock()):  # one read, however many threads ask
            if shard not in self._boundaries:
                self._boundaries[shard] = self._read_boundaries(shard)
        begin, end = self.shards.bounds(shard)
        offsets = self._boundaries[shard]
        if sample_id == begin:
            return int(offsets[0])
        if sample_id == end:
            return int(offsets[-1])
        return int(offsets[sample_id // self._block_samples - begin // self._block_samples])

    def _read_boundaries(self, shard: int) -> np.ndarray:
        """The first offset, those at block boundaries strictly inside the shard, and the end."""
        offsets = self.shards.offsets(shard)
        begin, size = self.shards.bounds(shard)[0], self._block_samples
        inside = offsets[-begin % size or size : len(offsets) - 1 : size]
        return np.concatenate([offsets[:1], inside, offsets[-1:]])

"""Where blocks lie: sample id -> shard, block -> byte ranges. A few bytes per block, read when first needed.

Blocks are cut from the sample axis of the whole dataset (`order.py`), so a block is one byte range of one tar, or two
and more where it straddles shards. Of each `.tar.idx` only the offsets at block boundaries are kept. Called by the
source, which fetches blocks, and by the reader, which names a bad sample's shard.
"""

from dataclasses import dataclass
from threading import Lock

import numpy as np

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import Manifest, index_name, read_index
from pipeline.retry import patiently


@dataclass(frozen=True)
class ByteRange:
    """Bytes [start, stop) of one shard: the whole of `num_samples` neighbouring samples."""

    shard: str
    start: int
    stop: int
    num_samples: int


class BlockIndex:
    """The byte ranges of every block of the dataset at `url`; safe to call from several threads."""

    def __init__(self, url: str, manifest: Manifest, block_samples: int) -> None:
        self._url = url
        self._shards = manifest.shards
        self._block_samples = block_samples
        self._first = np.concatenate([[0], np.cumsum([s.num_samples for s in manifest.shards], dtype=np.int64)])
        self._offsets: dict[int, np.ndarray] = {}
        self._locks = [Lock() for _ in manifest.shards]

    def locate(self, sample_id: int) -> tuple[str, int]:
        """(shard name, place inside the shard) of a sample."""
        shard = self._shard_of(sample_id)
        return self._shards[shard].name, sample_id - int(self._first[shard])

    def block_of(self, sample_id: int) -> int:
        """The block that holds a sample."""
        return sample_id // self._block_samples

    def place_in_block(self, sample_id: int) -> int:
        """Place of a sample among those of its block."""
        return sample_id % self._block_samples

    def ranges(self, block: int) -> list[ByteRange]:
        """The byte ranges of a block, in sample order.

        Raises:
            UserError: an index is missing or does not fit the manifest.
        """
        first = block * self._block_samples
        last = min(first + self._block_samples, int(self._first[-1]))
        found = []
        while first < last:
            shard = self._shard_of(first)
            stop = min(last, int(self._first[shard + 1]))
            start_byte, stop_byte = self._boundary(shard, first), self._boundary(shard, stop)
            found.append(ByteRange(self._shards[shard].name, start_byte, stop_byte, stop - first))
            first = stop
        return found

    def _shard_of(self, sample_id: int) -> int:
        """The shard that holds a sample (shards without samples hold none)."""
        return int(np.searchsorted(self._first, sample_id, side="right")) - 1

    def _boundary(self, shard: int, sample_id: int) -> int:
        """Byte offset in `shard` at which `sample_id` starts, or the shard's samples end."""
        with self._locks[shard]:  # one read, however many threads ask
            if shard not in self._offsets:
                self._offsets[shard] = self._read_boundaries(shard)
        begin, end = int(self._first[shard]), int(self._first[shard + 1])
        offsets = self._offsets[shard]
        if sample_id == begin:
            return int(offsets[0])
        if sample_id == end:
            return int(offsets[-1])
        return int(offsets[sample_id // self._block_samples - begin // self._block_samples])

    def _read_boundaries(self, shard: int) -> np.ndarray:
        """Of one `.tar.idx`: the first offset, those at block boundaries strictly inside the shard, and the end."""
        record = self._shards[shard]
        offsets = patiently(lambda: read_index(storage.join(self._url, index_name(record.name))))
        if len(offsets) != record.num_samples + 1:
            raise UserError(
                f"{record.name}: its index has {len(offsets) - 1} samples, the manifest {record.num_samples};"
                f" write both again with `tessera-data index {self._url}`"
            )
        begin, size = int(self._first[shard]), self._block_samples
        inside = offsets[-begin % size or size : record.num_samples : size]
        return np.concatenate([offsets[:1], inside, offsets[-1:]])

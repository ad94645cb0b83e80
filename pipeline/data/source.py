"""Blocks of samples from local files or object storage, fetched ahead by a pool of threads, in bounded memory.

One block is one ranged read. Failures of the store are tried again with growing pauses and then stop the run: a
substitute for them would make the stream depend on the weather. Bytes that arrive but are not a tar are another matter:
the block counts as damaged, and the reader replaces its samples. Called by the reader.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.index import BlockIndex, ByteRange
from pipeline.data.tar import TarError, TarSample, parse_samples
from pipeline.distributed.beacon import BEACON
from pipeline.retry import patiently


class BlockSource:
    """The blocks of one dataset; holds at most `capacity` of them, the most recently used.

    One thread calls `prefetch` and `get`; the pool's threads only fetch and parse.
    """

    def __init__(self, url: str, index: BlockIndex, capacity: int, num_threads: int) -> None:
        self._url = url
        self._index = index
        self._capacity = capacity
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._blocks: OrderedDict[int, Future[list[TarSample] | TarError]] = OrderedDict()

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Begin to fetch what is not there yet; over capacity, the blocks used longest ago are forgotten."""
        for block in blocks:
            if block not in self._blocks:
                self._blocks[block] = self._pool.submit(self._fetch, block)
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def get(self, block: int) -> list[TarSample] | TarError:
        """The samples of a block, or the damage that was found in it.

        Raises:
            UserError: a shard or its index is gone or shorter than the manifest says.
            OSError: the store still failed after all attempts.
        """
        if block not in self._blocks:
            self.prefetch([block])
        if not self._blocks[block].done():  # for the watchdog, should it never come
            BEACON.shard = storage.join(self._url, self._index.ranges(block)[0].shard)
        return self._blocks[block].result()

    def close(self) -> None:
        """Forget all blocks and end the threads; reads under way are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._blocks.clear()

    def _fetch(self, block: int) -> list[TarSample] | TarError:
        """Read and parse one block (in a thread of the pool)."""
        samples: list[TarSample] = []
        for piece in self._index.ranges(block):
            data = read_range(storage.join(self._url, piece.shard), piece)
            try:
                found = parse_samples(data)
            except TarError as error:
                return error
            if len(found) != piece.num_samples:
                count = f"{len(found)} samples instead of {piece.num_samples}"
                return TarError(f"bytes {piece.start}-{piece.stop}: {count}")
            samples += found
        return samples


def read_range(url: str, piece: ByteRange) -> bytes:
    """The bytes of `piece` from the tar at `url`.

    Raises:
        UserError: the tar is gone, or shorter than its index says.
        OSError: the store failed again and again (or what its client raises then).
    """
    try:
        data = _read_local(url, piece) if storage.is_local(url) else _read_remote(url, piece)
    except FileNotFoundError:
        raise UserError(f"{url}: not found, though the manifest names it; copy it there, or index again") from None
    if len(data) != piece.stop - piece.start:
        raise UserError(f"{url}: ends before byte {piece.stop}; the tar is cut off or its index stale, index again")
    return data


def _read_local(url: str, piece: ByteRange) -> bytes:
    """One positioned read; a file system may give less than asked, and zero bytes at the end."""
    with storage.local_path(url).open("rb", buffering=0) as file:
        parts, offset = [], piece.start
        while part := os.pread(file.fileno(), piece.stop - offset, offset):
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_remote(url: str, piece: ByteRange) -> bytes:
    """One ranged GET, tried again when it fails or falls short."""
    fs, path = storage.filesystem(url)

    def get() -> bytes:
        data = bytes(fs.cat_file(path, start=piece.start, end=piece.stop))
        if len(data) != piece.stop - piece.start:
            raise OSError(f"{url}: {len(data)} bytes instead of {piece.stop - piece.start}")
        return data

    return patiently(get)

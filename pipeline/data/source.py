"""Blocks of samples from local files or object storage, fetched ahead by a pool of threads, in bounded memory.

One block is one ranged read, or a few where its samples are not neighbours. Failures of the store are tried again and
then stop the run (`ranged.py`): a substitute for them would make the stream depend on the weather. Bytes that arrive
but are not a tar are another matter: the block counts as damaged, and the reader replaces its samples. Called by the
reader.
"""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.data.index import BlockIndex, ByteRange
from pipeline.data.ranged import RangedReader
from pipeline.data.tar import TarError, TarSample, parse_samples
from pipeline.distributed.beacon import BEACON


class BlockSource:
    """The blocks of one plan; holds at most `capacity` of them, the most recently used.

    One thread calls `prefetch` and `get`; the pool's threads only fetch and parse.
    """

    def __init__(self, index: BlockIndex, capacity: int, num_threads: int) -> None:
        self.ranged = RangedReader()
        self._index = index
        self._capacity = capacity
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._blocks: OrderedDict[int, Future[list[TarSample] | TarError]] = OrderedDict()

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Begin to fetch what is not there yet; over capacity, the blocks used longest ago are forgotten."""
        for block in blocks:
            if block not in self._blocks:
                if len(self._blocks) == self._capacity:
                    self._blocks.popitem(last=False)
                self._blocks[block] = self._pool.submit(self._fetch, block)
            self._blocks.move_to_end(block)

    def get(self, block: int) -> list[TarSample] | TarError:
        """The samples of a block, or the damage that was found in it.

        Raises:
            UserError: a shard or its index is gone, shorter than the manifest says, or changed.
            OSError: the store still failed after all attempts.
        """
        if block not in self._blocks:
            self.prefetch([block])
        if not self._blocks[block].done():  # for the watchdog, should it never come
            BEACON.shard = self._index.ranges(block)[0].url
        return self._blocks[block].result()

    def close(self) -> None:
        """Forget all blocks and end the threads; reads under way are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._blocks.clear()

    def _fetch(self, block: int) -> list[TarSample] | TarError:
        """Read and parse one block (in a thread of the pool)."""
        samples: list[TarSample] = []
        for piece in self._index.ranges(block):
            data = self.ranged.read(piece.url, piece.start, piece.stop)
            try:
                samples += _wanted(parse_samples(data), piece)
            except TarError as error:
                return error
        return samples


def _wanted(found: list[TarSample], piece: ByteRange) -> list[TarSample]:
    """Those samples of a range that count.

    Raises:
        TarError: the range holds another number of samples than the index says.
    """
    if len(found) != piece.num_samples:
        count = f"{len(found)} samples instead of {piece.num_samples}"
        raise TarError(f"bytes {piece.start}-{piece.stop}: {count}")
    return found if piece.wanted is None else [found[place] for place in piece.wanted]

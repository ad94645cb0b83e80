"""Blocks of samples from local files or object storage, fetched ahead by a pool of threads, in bounded memory.

One block is one ranged read, or a few where its samples are not neighbours; neighbouring blocks that are wanted at
the same time share a read, as by a large batch in order or in a small dataset. Failures of the store are tried again
and then stop the run (`ranged.py`): a substitute for them would make the stream depend on the weather. Bytes that
arrive but are not a tar are another matter: the block counts as damaged, and the reader replaces its samples. Called by
the reader.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

from pipeline.data.index import BlockIndex, ByteRange
from pipeline.data.ranged import RangedReader
from pipeline.data.tar import TarError, TarSample, parse_samples
from pipeline.distributed.beacon import BEACON

MAX_RUN = 4
"""Neighbouring blocks that share a read: more would leave other threads without work."""

Block = list[TarSample] | TarError
"""The samples of a block, or the damage that was found in it."""


class BlockSource:
    """The blocks of one plan; holds at most `capacity` of them, the most recently used.

    One thread calls `prefetch` and `get`; the pool's threads only fetch and parse.
    """

    def __init__(self, index: BlockIndex, capacity: int, num_threads: int) -> None:
        self.ranged = RangedReader()
        self._index = index
        self._capacity = capacity
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._blocks: OrderedDict[int, Future[Block]] = OrderedDict()

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Begin to fetch what is not there yet; over capacity, the blocks used longest ago are forgotten."""
        missing = dict[int, Future[Block]]()
        for block in blocks:
            if block not in self._blocks:
                if len(self._blocks) == self._capacity:
                    self._blocks.popitem(last=False)
                self._blocks[block] = missing[block] = Future()
            self._blocks.move_to_end(block)
        for run in self._runs(missing):
            self._pool.submit(self._fetch, run, [missing[block] for block in run])

    def get(self, block: int) -> Block:
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

    def _runs(self, missing: Iterable[int]) -> Iterator[list[int]]:
        """Neighbouring blocks of one shard together, those first that are needed first."""
        left = dict.fromkeys(missing)
        while left:
            run = [next(iter(left))]
            shard = self._index.shard_of(run[0])
            for step, end in ((-1, 0), (1, -1)):
                while len(run) < MAX_RUN and (near := run[end] + step) in left and self._index.shard_of(near) == shard:
                    run.insert(0 if step < 0 else len(run), near)
            for block in run:
                del left[block]
            yield run

    def _fetch(self, run: list[int], futures: list[Future[Block]]) -> None:
        """Read and parse neighbouring blocks (in a thread of the pool)."""
        try:
            ranges = [self._index.ranges(block) for block in run]
            pieces = self._read(list(chain(*ranges)))
            for own, future in zip(ranges, futures, strict=True):
                future.set_result(_parsed([(piece, next(pieces)) for piece in own]))
        except Exception as error:  # whatever it is, it belongs to whoever wants the blocks
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def _read(self, ranges: list[ByteRange]) -> Iterator[memoryview]:
        """The bytes of each range; what lies side by side is read at once."""
        begin = 0
        while begin < len(ranges):
            end = begin + 1
            while end < len(ranges) and ranges[end].follows(ranges[end - 1]):
                end += 1
            first = ranges[begin].start
            data = memoryview(self.ranged.read(ranges[begin].url, first, ranges[end - 1].stop))
            yield from (data[piece.start - first : piece.stop - first] for piece in ranges[begin:end])
            begin = end


def _parsed(pieces: list[tuple[ByteRange, memoryview]]) -> Block:
    """The samples of a block from its ranges."""
    samples: list[TarSample] = []
    for piece, data in pieces:
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

"""Places to batches: fetch the blocks, decode the members, replace or drop what is unreadable, stack the rest.

Called by the loader's read-ahead thread, one call at a time; only decoding is spread over threads, since the decoders
release the interpreter lock.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.index import BlockIndex
from pipeline.data.quarantine import Quarantine
from pipeline.data.samples import BadSample, Decoded, Decoder
from pipeline.data.source import BlockSource
from pipeline.data.tar import TarError, TarSample

MAX_SUBSTITUTES = 100
"""Attempts to find a readable substitute: only a dataset that is damaged throughout needs more."""


@dataclass(frozen=True)
class Slot:
    """One place of a batch: which sample it asks for."""

    epoch: int
    sample_id: int
    place: int
    """Of `pipeline.data.plan`: what it is fetched by."""


Slots = list[Slot]

Substitute = Callable[[Slot, int], Slot]
"""(slot of an unreadable sample, attempt) -> another one."""


class SampleReader:
    """Reads any samples of one plan, in the order that is asked for."""

    def __init__(
        self, index: BlockIndex, source: BlockSource, decoder: Decoder, quarantine: Quarantine, num_threads: int
    ) -> None:
        self._index = index
        self._source = source
        self._decoder = decoder
        self._quarantine = quarantine
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode") if num_threads > 1 else None
        self._num_threads = num_threads

    @property
    def num_bytes(self) -> int:
        """Bytes fetched so far."""
        return self._source.ranged.num_bytes

    def prefetch(self, slots: Slots) -> None:
        """Begin to fetch the blocks of later batches."""
        self._source.prefetch(dict.fromkeys(self._index.block_of(slot.place) for slot in slots))

    def read(self, slots: Slots, substitute: Substitute | None) -> Batch:
        """The batch of these samples.

        Args:
            substitute: names another sample for an unreadable one; None leaves its place out of the batch.

        Raises:
            UserError: too many unreadable samples, or a shard is gone.
            OSError: the store failed for good.
        """
        served, samples = Slots(), list[Decoded]()
        for slot, result in zip(slots, self._decode_all(slots), strict=True):
            if isinstance(result, BadSample):
                self._put_away(slot, result)
                if substitute is None:
                    continue
                slot, result = self._replace(slot, substitute)
            served.append(slot)
            samples.append(result)
        arrays = self._decoder.stack(samples)
        return Batch(
            sample_ids=[slot.sample_id for slot in served],
            epochs=[slot.epoch for slot in served],
            keys=[sample.key for sample in samples],
            captions=[sample.caption for sample in samples],
            images=arrays.images,
            latents=arrays.latents,
            text_states=arrays.text_states,
            metadata=[sample.metadata for sample in samples],
        )

    def close(self) -> None:
        """End the threads."""
        self._source.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _decode_all(self, slots: Slots) -> list[Decoded | BadSample]:
        """Every slot decoded, in order; the blocks are awaited here, the threads only decode."""
        work = [(self._members(slot), slot) for slot in slots]
        if self._pool is None or len(work) < self._num_threads:
            return [self._decode(*item) for item in work]
        share = -(-len(work) // self._num_threads)
        pieces = [work[i : i + share] for i in range(0, len(work), share)]
        done = self._pool.map(lambda piece: [self._decode(*item) for item in piece], pieces)
        return [result for piece in done for result in piece]

    def _members(self, slot: Slot) -> TarSample | TarError:
        """The members of a sample, or the damage of its block."""
        samples = self._source.get(self._index.block_of(slot.place))
        return samples if isinstance(samples, TarError) else samples[self._index.place_in_block(slot.place)]

    def _decode(self, members: TarSample | TarError, slot: Slot) -> Decoded | BadSample:
        if isinstance(members, TarError):
            return BadSample(str(members))
        try:
            return self._decoder(members, slot.epoch, slot.sample_id)
        except BadSample as error:
            return error

    def _replace(self, bad: Slot, substitute: Substitute) -> tuple[Slot, Decoded]:
        """The first readable substitute: the same one on every rank and after every resume."""
        for attempt in range(MAX_SUBSTITUTES):
            slot = substitute(bad, attempt)
            result = self._decode(self._members(slot), slot)
            if isinstance(result, Decoded):
                return slot, result
            self._put_away(slot, result)
        raise UserError(f"{MAX_SUBSTITUTES} substitutes in a row are unreadable; run `tessera-data validate`")

    def _put_away(self, slot: Slot, reason: BadSample) -> None:
        shard, place = self._index.shards.locate(slot.sample_id)
        self._quarantine.add(slot.sample_id, shard, place, str(reason))

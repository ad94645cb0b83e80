"""Sample ids to batches: fetch the blocks, decode the members, replace or drop what is unreadable, stack the rest.

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
class Slots:
    """Which samples a batch asks for: one epoch and one sample id for each place."""

    epochs: list[int]
    sample_ids: list[int]


Substitute = Callable[[int, int, int], int]
"""(epoch, sample id, attempt) -> another sample id."""


class SampleReader:
    """Reads any samples of one dataset, in the order that is asked for."""

    def __init__(
        self, index: BlockIndex, source: BlockSource, decoder: Decoder, quarantine: Quarantine, num_threads: int
    ) -> None:
        self._index = index
        self._source = source
        self._decoder = decoder
        self._quarantine = quarantine
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode") if num_threads > 1 else None
        self._num_threads = num_threads

    def prefetch(self, slots: Slots) -> None:
        """Begin to fetch the blocks of a later batch."""
        self._source.prefetch(dict.fromkeys(self._index.block_of(i) for i in slots.sample_ids))

    def read(self, slots: Slots, substitute: Substitute | None) -> Batch:
        """The batch of these samples.

        Args:
            substitute: names another sample for an unreadable one; None leaves its place out of the batch.

        Raises:
            UserError: too many unreadable samples, or a shard is gone.
            OSError: the store failed for good.
        """
        places = list(zip(slots.epochs, slots.sample_ids, strict=True))
        ids, epochs, samples = [], [], []
        for (epoch, sample_id), result in zip(places, self._decode_all(places), strict=True):
            if isinstance(result, BadSample):
                self._put_away(sample_id, result)
                if substitute is None:
                    continue
                sample_id, result = self._replace(epoch, sample_id, substitute)
            ids.append(sample_id)
            epochs.append(epoch)
            samples.append(result)
        arrays = self._decoder.stack(samples)
        return Batch(
            sample_ids=ids,
            epochs=epochs,
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

    def _decode_all(self, places: list[tuple[int, int]]) -> list[Decoded | BadSample]:
        """Every place decoded, in order; the blocks are awaited here, the threads only decode."""
        work = [(self._members(sample_id), epoch, sample_id) for epoch, sample_id in places]
        if self._pool is None or len(work) < self._num_threads:
            return [self._decode(*item) for item in work]
        share = -(-len(work) // self._num_threads)
        pieces = [work[i : i + share] for i in range(0, len(work), share)]
        done = self._pool.map(lambda piece: [self._decode(*item) for item in piece], pieces)
        return [result for piece in done for result in piece]

    def _members(self, sample_id: int) -> TarSample | TarError:
        """The members of a sample, or the damage of its block."""
        samples = self._source.get(self._index.block_of(sample_id))
        return samples if isinstance(samples, TarError) else samples[self._index.place_in_block(sample_id)]

    def _decode(self, members: TarSample | TarError, epoch: int, sample_id: int) -> Decoded | BadSample:
        if isinstance(members, TarError):
            return BadSample(str(members))
        try:
            return self._decoder(members, epoch, sample_id)
        except BadSample as error:
            return error

    def _replace(self, epoch: int, bad_id: int, substitute: Substitute) -> tuple[int, Decoded]:
        """The first readable substitute: the same one on every rank and after every resume."""
        for attempt in range(MAX_SUBSTITUTES):
            sample_id = substitute(epoch, bad_id, attempt)
            result = self._decode(self._members(sample_id), epoch, sample_id)
            if isinstance(result, Decoded):
                return sample_id, result
            self._put_away(sample_id, result)
        raise UserError(f"{MAX_SUBSTITUTES} substitutes in a row are unreadable; run `tessera-data validate`")

    def _put_away(self, sample_id: int, reason: BadSample) -> None:
        shard, place = self._index.locate(sample_id)
        self._quarantine.add(sample_id, shard, place, str(reason))

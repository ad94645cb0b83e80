"""Training on tars that have no index, by webdataset's own pipeline (`data.order: stream`).

Shards are drawn with replacement and samples pass a shuffle buffer, as webdataset does it. What `loader.Loader` gives
for an index is not to be had here: there are no epochs, a resumed run sees other samples than an undisturbed one would,
and so does another number of ranks. Called by the experiment.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.captions import CaptionChoice
from pipeline.data.dataset import DataConfig
from pipeline.data.quarantine import Quarantine
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.reader import Slot, Slots, Substitute
from pipeline.data.samples import BadSample, Decoded, Decoder
from pipeline.data.tar import TarSample
from pipeline.randomness import Draws

GRACE_SAMPLES = 1000
"""Samples that the share of bad ones is judged over at the beginning, when few have been read."""


def tar_urls(url: str) -> list[str]:
    """The tars that `url` names: a local folder, a list in braces such as `shards/{000..099}.tar`, or one command or
    address that webdataset opens (`pipe:...`, `https://...`).

    Raises:
        UserError: there are none.
    """
    from webdataset.shardlists import expand_source

    is_folder = Path(url).is_dir()
    urls = sorted(str(path) for path in Path(url).glob("*.tar")) if is_folder else list(expand_source(url))
    if not urls or ("{" not in url and ":" not in url and not Path(url).exists()):
        raise UserError(
            f"data.train: {url}: no such tars; name a folder with *.tar, or a list as in s/{{000..099}}.tar"
        )
    return urls


def stream_digest(url: str) -> str:
    """sha256 of the names of the tars: what lineage knows of data without a manifest. The bytes may change unseen."""
    return hashlib.sha256("\n".join(tar_urls(url)).encode()).hexdigest()


class StreamLoader:
    """Training batches of one rank from un-indexed tars of pictures; owns threads, so close it.

    Arguments as `Loader`'s.

    Raises:
        UserError: no tars, buckets, or a batch size that the ranks do not divide.
    """

    def __init__(
        self,
        url: str,
        config: DataConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        batch_size: int,
        quarantine: Path | None = None,
    ) -> None:
        if batch_size % world_size:
            raise UserError(f"batch_size {batch_size} does not divide by {world_size} ranks")
        if config.aspect_buckets:
            raise UserError(
                "data.aspect_buckets: order: stream has no index to sort by; `tessera-data index` makes one"
            )
        self._urls, self.digest = tar_urls(url), stream_digest(url)
        self._config, self._seed, self._rank, self._world_size = config, seed, rank, world_size
        self._batch_size, self._quarantine = batch_size, Quarantine(quarantine, float("inf"), rank, self.digest)
        self._pool = ThreadPoolExecutor(config.num_decode_threads, thread_name_prefix="decode")
        self._stream: ReadAhead | None = None

    @property
    def quarantined(self) -> int:
        """Unreadable samples that this rank has met."""
        return len(self._quarantine)

    def batches(self, samples_seen: int = 0) -> Iterator[Batch]:
        """Endless batches of this rank; another place of the run draws other shards, so nothing is seen twice alike."""
        from pipeline.data.pictures import PictureDecoder  # brings OpenCV

        if self._stream is not None:
            self._stream.close()
        config = self._config
        draws, side = Draws(self._seed), config.image_size
        captions = CaptionChoice(config.captions, draws)
        decoder = PictureDecoder(
            lambda sample_id: (side, side), captions, draws, config.crop == "random", config.random_flip
        )
        samples = self._samples(random.Random(f"{self._seed} {self._rank} {samples_seen}"))
        reader = StreamReader(samples, decoder, self._quarantine, config.max_bad_fraction, self._pool)
        self._stream = ReadAhead(self._plan(samples_seen), reader, None, config.prefetch_batches, 1)
        return self._stream

    def close(self) -> None:
        """End the stream and all threads."""
        if self._stream is not None:
            self._stream.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _samples(self, rng: random.Random) -> Iterator[tuple[str, TarSample]]:
        """Each sample with the tar that it is from, without an end."""
        import webdataset

        seed = rng.getrandbits(63)
        pipeline = webdataset.DataPipeline(
            webdataset.ResampledShards(self._urls, deterministic=True, worker_seed=lambda: seed),
            webdataset.tarfile_to_samples(),
            webdataset.shuffle(self._config.stream_shuffle_samples, rng=rng),
        )
        for sample in pipeline:
            members = {name: data for name, data in sample.items() if not name.startswith("__")}
            yield sample["__url__"], TarSample(sample["__key__"], members)

    def _plan(self, samples_seen: int) -> Iterator[Slots]:
        """A sample's number is its place in the run: the key of its random draws."""
        local = self._batch_size // self._world_size
        for first in count(samples_seen, self._batch_size):
            ids = [first + self._rank + self._world_size * i for i in range(local)]
            yield [Slot(0, sample_id, sample_id) for sample_id in ids]


class StreamReader:
    """Takes the next readable samples of a stream; see `read_ahead.BatchReader`."""

    def __init__(
        self,
        samples: Iterable[tuple[str, TarSample]],
        decoder: Decoder,
        quarantine: Quarantine,
        max_bad_fraction: float,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._samples, self._decoder, self._pool = iter(samples), decoder, pool
        self._quarantine, self._max_bad_fraction, self._num_read = quarantine, max_bad_fraction, 0

    def prefetch(self, slots: Slots) -> None:
        """Nothing: a stream is read in its own order."""

    def read(self, slots: Slots, substitute: Substitute | None) -> Batch:
        """As many readable samples as there are slots; the unreadable are written down and passed over.

        Raises:
            UserError: more than the config's share of the samples cannot be read.
        """
        decoded: list[Decoded] = []
        while missing := slots[len(decoded) :]:
            taken = [next(self._samples) for _ in missing]
            for (url, sample), result in zip(taken, self._pool.map(self._decode, taken, missing), strict=True):
                self._num_read += 1
                if isinstance(result, BadSample):
                    self._put_away(url, sample.key, result)
                else:
                    decoded.append(result)
        arrays = self._decoder.stack(decoded)
        return Batch(
            sample_ids=[slot.sample_id for slot in slots],
            epochs=[slot.epoch for slot in slots],
            keys=[sample.key for sample in decoded],
            captions=[sample.caption for sample in decoded],
            images=arrays.images,
            metadata=[sample.metadata for sample in decoded],
        )

    def _decode(self, item: tuple[str, TarSample], slot: Slot) -> Decoded | BadSample:
        try:
            return self._decoder(item[1], slot.epoch, slot.sample_id)
        except BadSample as error:
            return error

    def _put_away(self, url: str, key: str, reason: BadSample) -> None:
        self._quarantine.add(self._num_read, url, self._num_read, f"{key}: {reason}")
        if len(self._quarantine) > self._max_bad_fraction * max(self._num_read, GRACE_SAMPLES):
            raise UserError(
                f"{len(self._quarantine)} of {self._num_read} samples are unreadable, the last in {url}: {reason};"
                " leave such tars out, or raise data.max_bad_fraction"
            )

"""The data of a run: an exact endless stream for training, one exact pass for everything else.

`Loader` serves global batches cut from the endless sample axis of `order.py`: the batch at `samples_seen` holds the
same samples in the same order for every world size, and its whole state is that one number. `OrderedReader` serves each
sample once, in the order of the manifest. Called by the experiment, the evaluation and precomputation.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.config import UserError
from pipeline.data.batch import Batch
from pipeline.data.dataset import DataConfig, PartConfig, make_plan, open_buckets, open_datasets, plan_digest
from pipeline.data.open_reader import open_reader, whole_plan
from pipeline.data.quarantine import Quarantine
from pipeline.data.read_ahead import ReadAhead
from pipeline.data.reader import Slot, Slots
from pipeline.randomness import Draws

PLANNED_SAMPLES = 4096
"""Positions whose order is computed in one go: the arithmetic costs as much for one as for hundreds."""


class Loader:
    """Training batches of one rank; owns threads, so close it (or use it in a `with`).

    Args:
        train: dataset folder, or several with their weights; manifests say whether they hold images or latents.
        seed: of the run; with the manifests and the config's `num_lanes` and `block_samples` it fixes the order.
        batch_size: samples of one step over all ranks.
        quarantine: JSON lines file of unreadable samples; None writes none.
        expect_autoencoder: digest that latents must be stamped with; None takes any.

    Raises:
        UserError: no manifest, no samples, a batch size that the ranks do not divide, or stale latents.
    """

    def __init__(
        self,
        train: str | Sequence[PartConfig],
        config: DataConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        batch_size: int,
        quarantine: Path | None = None,
        expect_autoencoder: str | None = None,
    ) -> None:
        if batch_size % world_size:
            low = batch_size - batch_size % world_size
            near = " or ".join(str(n) for n in (low, low + world_size) if n)
            raise UserError(f"batch_size {batch_size} does not divide by {world_size} ranks; take {near}")
        datasets = open_datasets(train, config.block_samples, expect_autoencoder)
        buckets = open_buckets(datasets, config)
        self._config, self._rank, self._world_size, self._batch_size = config, rank, world_size, batch_size
        self._plan = make_plan(datasets, buckets, config, seed, batch_size)
        self.digest = plan_digest(datasets, buckets, config, batch_size)
        """What a checkpoint remembers of its data."""
        self._quarantine = Quarantine(quarantine, config.max_bad_fraction * self.num_samples, rank, self.digest)
        self._reader = open_reader(
            datasets, self._plan, config, Draws(seed), self._quarantine, self._blocks_in_use(), buckets
        )
        self._stream: ReadAhead | None = None

    @property
    def num_samples(self) -> int:
        """Samples of all datasets, those alone that their selections leave."""
        return self._plan.num_samples

    @property
    def quarantined(self) -> int:
        """Distinct unreadable samples that this rank has met."""
        return len(self._quarantine)

    @property
    def bytes_fetched(self) -> int:
        """Bytes that this rank has read of the tars."""
        return self._reader.num_bytes

    def batches(self, samples_seen: int = 0) -> Iterator[Batch]:
        """Endless batches of this rank from a position on; costs the same at every position.

        A batch may straddle two epochs, nothing is dropped or repeated, and all ranks make the same number of steps.
        An earlier stream of this loader ends.
        """
        if self._stream is not None:
            self._stream.close()
        config = self._config
        self._stream = ReadAhead(
            self._slots(samples_seen),
            self._reader,
            self._substitute,
            config.prefetch_batches,
            config.fetch_ahead_batches,
        )
        return self._stream

    def close(self) -> None:
        """End the stream and all threads."""
        if self._stream is not None:
            self._stream.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _slots(self, samples_seen: int) -> Iterator[Slots]:
        """Place i of a global batch belongs to rank i % world_size."""
        local = self._batch_size // self._world_size
        num_batches = -(-PLANNED_SAMPLES // local)
        while True:
            firsts = samples_seen + self._batch_size * np.arange(num_batches)
            positions = self._rank + self._world_size * np.arange(local)
            epochs, places = self._plan.places_at((firsts[:, None] + positions).ravel())
            columns = epochs.tolist(), self._plan.sample_ids(places).tolist(), places.tolist()
            slots = [Slot(*row) for row in zip(*columns, strict=True)]
            yield from (slots[begin : begin + local] for begin in range(0, len(slots), local))
            samples_seen += num_batches * self._batch_size

    def _substitute(self, slot: Slot, attempt: int) -> Slot:
        """As the plan draws it."""
        place = self._plan.substitute(slot.epoch, slot.place, attempt)
        return Slot(slot.epoch, int(self._plan.sample_ids(np.array([place]))[0]), place)

    def _blocks_in_use(self) -> int:
        """Blocks that the fetched window can touch: of each lane of this rank the first, the last and those between.

        Each dataset and each bucket has lanes of its own.
        """
        lanes = self._config.num_lanes // math.gcd(self._config.num_lanes, self._world_size)
        window = self._config.fetch_ahead_batches * self._batch_size // self._world_size
        return len(self._plan.axes) * lanes * (2 + window // (lanes * self._config.block_samples)) + 1


class OrderedReader:
    """Each sample of a dataset (or of the selection beside it) exactly once, in the order of the manifest; owns
    threads, so close it.

    The samples are cut into as few global batches of at most `batch_size` as possible, equal but for one sample; rank
    r serves the places i with i % world_size == r of each. All ranks yield the same number of batches, so collectives
    match; a rank's batch is empty only where a global batch has fewer samples than ranks. Pictures are cut in the
    middle and never flipped. An unreadable sample is left out, written to `quarantine`, and counts against
    `max_bad_fraction`.

    Raises:
        UserError: as `Loader`, for any batch size.
    """

    def __init__(
        self,
        url: str,
        config: DataConfig,
        rank: int = 0,
        world_size: int = 1,
        *,
        batch_size: int,
        quarantine: Path | None = None,
        expect_autoencoder: str | None = None,
    ) -> None:
        datasets = open_datasets(url, config.block_samples, expect_autoencoder)
        self.manifest, self._selection = datasets[0].manifest, datasets[0].selection
        self._config, self._rank, self._world_size, self._batch_size = config, rank, world_size, batch_size
        self.digest = datasets[0].digest
        """Of the manifest and the selection beside it."""
        bad = Quarantine(quarantine, config.max_bad_fraction * self.manifest.num_samples, rank, self.digest)
        num_blocks = (config.fetch_ahead_batches + 1) * batch_size // config.block_samples + 2
        self._reader = open_reader(datasets, whole_plan(datasets, config), config, None, bad, num_blocks)

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """One pass over the samples [first, last) of the manifest."""
        config = self._config
        plan = self._slots(first, self.manifest.num_samples if last is None else last)
        stream = ReadAhead(plan, self._reader, None, config.prefetch_batches, config.fetch_ahead_batches)
        with closing(stream):
            yield from stream

    def close(self) -> None:
        """End all threads."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _slots(self, first: int, last: int) -> Iterator[Slots]:
        every = np.arange(first, last)
        chosen = every if self._selection is None else every[self._selection.kept(first, last)]
        num_batches = -(-len(chosen) // self._batch_size)
        bounds = [len(chosen) * b // max(num_batches, 1) for b in range(num_batches + 1)]
        for begin, end in pairwise(bounds):
            ids = chosen[begin + self._rank : end : self._world_size].tolist()
            yield [Slot(0, sample_id, sample_id) for sample_id in ids]


def sequential(
    url: str,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
    *,
    batch_size: int,
    quarantine: Path | None = None,
    expect_autoencoder: str | None = None,
) -> Iterator[Batch]:
    """One pass of an `OrderedReader` that closes itself at the end."""
    reader = OrderedReader(
        url,
        config,
        rank,
        world_size,
        batch_size=batch_size,
        quarantine=quarantine,
        expect_autoencoder=expect_autoencoder,
    )
    return _one_pass(reader)


def _one_pass(reader: OrderedReader) -> Iterator[Batch]:
    with reader:
        yield from reader.batches()

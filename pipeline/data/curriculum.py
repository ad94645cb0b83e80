"""Datasets one after the other in one run: small pictures first, large ones behind them.

A step belongs to the phase in which it begins, and that is a function of the samples seen alone, so a run resumes
exactly at any place. The endless sample axis goes on through a change: phases over equally many samples continue one
another's epochs. A run without earlier phases is a curriculum of one. Opened by the experiment, read by the trainer.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field

from pipeline.config import Config, UserError
from pipeline.data.batch import Batch
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader, sequential
from pipeline.data.shards import load_manifest
from pipeline.data.stream import StreamLoader


class PhaseConfig(Config):
    """An earlier part of a run: what differs there from the rest of the config, which describes the last part."""

    until_samples: int = Field(gt=0)
    """The phase ends with the first step that reaches it, counted from the run's beginning."""
    train: str
    """Training data of the phase, in place of data.train."""
    validation: str | None = None
    """Validation data of the phase; None validates nothing in it."""
    image_size: int = Field(gt=0)
    """Side of its pictures in pixels."""
    batch_size: int = Field(gt=0)
    """Samples of one of its steps over all ranks."""
    shift: float = Field(default=1.0, gt=0)
    """The noise schedule's shift in the phase: where stage.objective.schedule.shift of the last one is the ratio of the
    sides, 1."""

    def data(self, last: DataConfig) -> DataConfig:
        """What the phase reads, with the last phase's settings for the rest."""
        own = {"train": self.train, "validation": self.validation, "image_size": self.image_size}
        return last.model_copy(update=own)


@dataclass(frozen=True)
class Phase:
    """A part of a run, opened."""

    until_samples: float
    """Samples seen at which the next phase begins; infinite for the last."""
    batch_size: int
    """Samples of a step over all ranks."""
    loader: Loader | StreamLoader
    """Its training data; costs no thread before the phase begins."""
    validation: Callable[[], Iterable[Batch]] | None
    """Opens one pass over its validation data."""


class Curriculum:
    """See `pipeline.trainer.Batches`; owns its loaders, so close it.

    Args:
        phases: in order, the last without an end.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        ends = [phase.until_samples for phase in phases]
        assert ends == sorted(set(ends)) and math.isinf(ends[-1]), ends
        self._phases = phases

    @property
    def digest(self) -> str:
        """Digest of the data of all phases; of a single one, that of its data."""
        return digest_of_phases([phase.loader.digest for phase in self._phases])

    @property
    def quarantined(self) -> int:
        """Unreadable samples that this rank has met, of all phases."""
        return sum(phase.loader.quarantined for phase in self._phases)

    def batch_size_at(self, samples_seen: int) -> int:
        """Samples over all ranks of the step that begins there."""
        return self._at(samples_seen).batch_size

    def validation_at(self, samples_seen: int) -> Iterable[Batch] | None:
        """One pass over the validation data of the step that began there; None where there are none."""
        validation = self._at(samples_seen).validation
        return None if validation is None else validation()

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Endless batches of this rank, each of the phase in which its step begins."""
        while True:
            phase = self._at(samples_seen)
            stream = phase.loader.batches(samples_seen)
            while samples_seen < phase.until_samples:
                yield next(stream)
                samples_seen += phase.batch_size
            phase.loader.close()

    def close(self) -> None:
        """End all threads."""
        for phase in self._phases:
            phase.loader.close()

    def _at(self, samples_seen: int) -> Phase:
        return next(phase for phase in self._phases if samples_seen < phase.until_samples)


def digest_of_phases(digests: Sequence[str]) -> str:
    """What a checkpoint remembers of all data of a run, from what each phase's loader remembers."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def open_curriculum(
    earlier: Sequence[PhaseConfig],
    last: DataConfig,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    quarantine: Path | None = None,
    expect_autoencoder: str | None = None,
) -> Curriculum:
    """Open all data of a run, so that a mistake in a late phase is told before the first step.

    Args:
        earlier: the phases before the last.
        last: data of the last phase.
        batch_size: of the last phase, over all ranks.

    Raises:
        UserError: as `Loader`, for any of the phases; phases that would cut a batch of a bucket.
    """
    ranks = (rank, world_size)
    if last.aspect_buckets:
        _check_batches_stay_whole([*((phase.until_samples, phase.batch_size) for phase in earlier), (None, batch_size)])

    def phase(until: float, data: DataConfig, size: int) -> Phase:
        loader: Loader | StreamLoader
        what = (data, seed, *ranks)
        if data.order == "stream":
            loader = StreamLoader(data.stream_url, *what, batch_size=size, quarantine=quarantine)
        else:
            expected = expect_autoencoder
            loader = Loader(data.train, *what, batch_size=size, quarantine=quarantine, expect_autoencoder=expected)
        if data.validation is None:
            return Phase(until, size, loader, None)
        load_manifest(data.validation)  # a wrong path is told now, not at the first validation
        one_pass = partial(sequential, data.validation, data, *ranks)
        return Phase(until, size, loader, partial(one_pass, batch_size=size, expect_autoencoder=expect_autoencoder))

    opened = [phase(one.until_samples, one.data(last), one.batch_size) for one in earlier]
    return Curriculum([*opened, phase(math.inf, last, batch_size)])


def _check_batches_stay_whole(phases: Sequence[tuple[int | None, int]]) -> None:
    """A bucket's batches begin at multiples of the batch size; a phase that begins elsewhere would mix two shapes.

    Args:
        phases: (until_samples, batch size) of each; None for the last.
    """
    begin = 0
    for until, batch_size in phases:
        if begin % batch_size:
            raise UserError(
                f"phases: with data.aspect_buckets a phase begins at a multiple of its batch size, but {begin} samples"
                f" are seen where batches of {batch_size} begin; change until_samples or a batch_size"
            )
        if until is not None:
            begin += max(-(-(until - begin) // batch_size), 0) * batch_size

"""The one training loop: restore, then step, measure, look, save, until the samples are used up or a stop is asked for.

`fit` knows neither the model nor the objective (a `Stage` does) nor where numbers go (a `Journal` does). Progress is
counted in samples, so a run may be resumed with another number of ranks. Called by `pipeline.commands.train`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from pipeline.checkpoint.store import Committed
from pipeline.config import Config, UserError
from pipeline.data.batch import Batch
from pipeline.data.served import Ledger, batch_floats
from pipeline.distributed.beacon import BEACON
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, mean_of_floats
from pipeline.distributed.stop import StopRequest, stop_on_signals
from pipeline.health import Health
from pipeline.pace import Pace, Peak, TrainState, process_age_seconds
from pipeline.storage import writing


class TrainerConfig(Config):
    """How long to train, and how often to look and to save."""

    total_samples: int = Field(gt=0)
    """Samples to train on; the run ends with the first step that reaches it."""
    batch_size: int = Field(gt=0)
    """Samples of one step over all ranks; earlier phases of the data may have another number."""
    checkpoint_every_samples: int = Field(gt=0)
    """Distance of two generations; the end of the run and a stop always write one."""
    validate_every_samples: int = Field(default=0, ge=0)
    """Distance of two validation passes; 0 is only at the end."""
    preview_every_samples: int = Field(default=0, ge=0)
    """Distance of two preview pictures; 0 is only at the end."""
    log_every_steps: int = Field(default=50, gt=0)
    """Steps between two lines on the console and in the journal."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Generations that stay on disk."""
    checkpoint_mirror: str | None = None
    """Where each generation is copied to as well, such as s3://bucket/runs/mine; a run folder that has none, or only
    older ones, goes on from there."""
    keep_every_samples: int = Field(default=0, ge=0)
    """Beyond those, one generation of each so many samples stays for good, as a snapshot; 0 keeps none."""


class Stage(Protocol):
    """An objective with its models, engines and averages. It counts no steps and logs nothing."""

    def train_step(
        self, batch: Batch, step: int, samples_seen: int, total_samples: int
    ) -> Mapping[str, Tensor | float]:
        """Train on the rank's part of one global batch.

        Args:
            batch: this rank's samples.
            step: optimizer steps made before this one.
            samples_seen: samples trained on before this batch, over all ranks.
            total_samples: where the run ends, for schedules.

        Returns:
            Detached scalars, the same names on every rank. Those that end in `_loss` must stay finite; those that end
            in `_norm` are what `Engine.step` returns, inf for a skipped step.
        """
        ...

    def validate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Metrics over one whole pass, exact over ranks. Collective."""
        ...

    def preview(self) -> np.ndarray:
        """A picture that shows the state of the model, uint8 [H, W, 3]. Collective."""
        ...

    def where_not_finite(self, batch: Batch) -> str | None:
        """After a loss that is not finite: the first layer whose output on `batch` is not, by name. Collective."""
        ...

    def parts(self) -> Mapping[str, Stateful]:
        """Everything that a checkpoint has to carry, by name."""
        ...


class Batches(Protocol):
    """The data (`pipeline.data` Curriculum)."""

    @property
    def digest(self) -> str:
        """Digest of the data manifests."""
        ...

    @property
    def quarantined(self) -> int:
        """Distinct unreadable samples that this rank has met in this start."""
        ...

    def batch_size_at(self, samples_seen: int) -> int:
        """Samples over all ranks of the step that begins there."""
        ...

    def validation_at(self, samples_seen: int) -> Iterable[Batch] | None:
        """One pass over the validation data that belong to the step that began there; None where there are none."""
        ...

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Endless rank-local batches, starting with global sample number `samples_seen`."""
        ...


class Checkpoints(Protocol):
    """Where generations are kept (`pipeline.checkpoint` CheckpointStore)."""

    @property
    def written(self) -> bool: ...

    def save(self, progress: dict[str, Any], parts: Mapping[str, Stateful]) -> None: ...

    def commit(self) -> Committed | None: ...

    def restore(self, parts: Mapping[str, Stateful]) -> dict[str, Any] | None: ...


class Journal(Protocol):
    """Where numbers and pictures go (`pipeline.tracking` Journal); only the main rank's is enabled."""

    def metrics(self, values: Mapping[str, float], step: int, samples_seen: int) -> None: ...

    def picture(self, name: str, path: Path, samples_seen: int) -> None: ...

    def committed(self, generation: int, samples_seen: int, stall_seconds: float) -> None: ...

    def resumed(self, samples_seen: int) -> None: ...

    def served(self, first: int, batch_size: int, ranks: int, words: Sequence[str]) -> None: ...


def due(before: int, after: int, every: int) -> bool:
    """True when a multiple of `every` lies in (before, after]; never for `every` = 0."""
    return every > 0 and after // every > before // every


def fit(
    stage: Stage,
    loader: Batches,
    checkpoints: Checkpoints,
    journal: Journal,
    process: Process,
    config: TrainerConfig,
    pictures: Path,
    peak: Peak | None = None,
) -> TrainState:
    """Train until `total_samples` or a stop signal; the same call again goes on where the last generation ended.

    Args:
        pictures: folder of the preview pictures.
        peak: what the MFU is measured by; None where no peak is known, and the MFU is left out.

    Returns:
        The state that was saved last; the run is complete when `samples_seen >= total_samples`.

    Raises:
        DivergedError: a loss is not finite; names it and the step, on every rank.
        UserError: the checkpoint was trained on other data.
    """
    # Order of initialisation:
    # 1. the newest good generation, before any data is opened: it says where the data begins;
    state, ledger = _restore(stage, loader, checkpoints, journal)
    # 2. the signal handlers: from here on a stop ends in a saved generation;
    with stop_on_signals() as stop:
        # 3. the data, at exactly the next sample;
        batches = loader.batches(state.samples_seen)
        # 4. the clock, last: it measures training only.
        pace = Pace(config.total_samples, state, process_age_seconds(), process.world_size, peak)
        health, stopping = Health(), False
        while state.samples_seen < config.total_samples and not stopping:
            batch = pace.waiting_for(batches, state.step)
            with pace.exchanging():
                measured = stage.train_step(batch, state.step, state.samples_seen, config.total_samples)
                metrics, stopping, written, served = _agree(measured, stop, checkpoints, batch, loader, process)
            before, state = state, state.after(loader.batch_size_at(state.samples_seen))
            ledger.add(before.samples_seen, state.samples_seen - before.samples_seen, served, process.world_size)
            health.check(state.step, metrics, partial(stage.where_not_finite, batch))
            pace.stepped()
            last = state.samples_seen >= config.total_samples

            if last or due(before.step, state.step, config.log_every_steps):
                _log(metrics | pace.lap(state), pace, journal, process, state)
            if last or due(before.samples_seen, state.samples_seen, config.validate_every_samples):
                _validate(stage, loader.validation_at(before.samples_seen), journal, state)
            if last or due(before.samples_seen, state.samples_seen, config.preview_every_samples):
                _preview(stage, pictures, journal, process, state)
            # Last, so that a generation holds what validation wrote into the model, and the journal is ahead of it. It
            # is written beside the next steps, and counts from the one at which every rank has written its share.
            saving = last or stopping or due(before.samples_seen, state.samples_seen, config.checkpoint_every_samples)
            if saving or written:
                _commit(checkpoints, journal, pace)
            if saving:
                ledger.write(journal, process.world_size)
                checkpoints.save(_progress(state, loader, ledger), stage.parts())
        _commit(checkpoints, journal, pace)
    return state


def _progress(state: TrainState, loader: Batches, ledger: Ledger) -> dict[str, Any]:
    return {"samples_seen": state.samples_seen, "step": state.step, "data": loader.digest, "served": ledger.chain}


def _restore(stage: Stage, loader: Batches, checkpoints: Checkpoints, journal: Journal) -> tuple[TrainState, Ledger]:
    progress = checkpoints.restore(stage.parts())
    if progress is None:
        return TrainState(), Ledger("")
    if progress["data"] != loader.digest:
        raise UserError(
            f"this run was trained on the data {progress['data'][:12]}, data.train is {loader.digest[:12]}: "
            "give the same data (with aspect buckets also the same batch size), or another run folder"
        )
    journal.resumed(progress["samples_seen"])
    state = TrainState(progress["samples_seen"], progress["step"])
    return state, Ledger(progress.get("served", ""))


def _agree(
    measured: Mapping[str, Tensor | float],
    stop: StopRequest,
    checkpoints: Checkpoints,
    batch: Batch,
    loader: Batches,
    process: Process,
) -> tuple[dict[str, float], bool, bool, list[float]]:
    """In one collective: the step's metrics as means over ranks, with the number of unreadable samples on all of them,
    whether any rank was asked to stop, whether all have written the save in flight, and the means of what the ledger
    keeps of the batch."""
    told = {**measured, "unreadable_samples": process.world_size * loader.quarantined}
    names = sorted(told)
    own = [*(float(told[name]) for name in names), float(stop.requested), float(checkpoints.written)]
    means = mean_of_floats([*own, *batch_floats(batch)])
    *metrics, stops, written = means[: len(own)]
    return dict(zip(names, metrics, strict=True)), stops > 0, written == 1, means[len(own) :]


def _log(metrics: dict[str, float], pace: Pace, journal: Journal, process: Process, state: TrainState) -> None:
    journal.metrics(metrics, state.step, state.samples_seen)
    if process.is_main:
        print(pace.line(state, metrics), flush=True)


def _commit(checkpoints: Checkpoints, journal: Journal, pace: Pace) -> None:
    BEACON.note("checkpoint")
    if (done := checkpoints.commit()) is not None:
        pace.stalled(done.stall_seconds)
        journal.committed(done.number, done.progress["samples_seen"], done.stall_seconds)


def _validate(stage: Stage, held_out: Iterable[Batch] | None, journal: Journal, state: TrainState) -> None:
    if held_out is not None:
        BEACON.note("validation")
        journal.metrics(stage.validate(held_out), state.step, state.samples_seen)


def _preview(stage: Stage, folder: Path, journal: Journal, process: Process, state: TrainState) -> None:
    BEACON.note("preview")
    picture = stage.preview()
    if not process.is_main:
        return
    path = folder / f"preview-{state.samples_seen:010d}.png"
    with writing(path) as file:
        Image.fromarray(picture).save(file, format="png")
    journal.picture("preview", path, state.samples_seen)

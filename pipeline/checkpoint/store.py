"""Saving and restoring the whole training state of a run, on all ranks together.

    save     every rank writes its file -> all agree that all did -> rank 0 commits the manifest -> old ones go
    restore  newest committed -> verified by all ranks, each some files -> damaged ones to quarantine, next older

A kill at any moment leaves either the old generation or the new one whole. Called by `pipeline.trainer`.
"""

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoint.generation import (
    MANIFEST,
    QUARANTINE,
    DamagedError,
    Generation,
    commit,
    committed,
    folder_of,
    folders,
    number_of,
)
from pipeline.checkpoint.reader import GenerationReader, PartReader
from pipeline.checkpoint.writer import random_state, set_random_state, with_retries, write_rank_file
from pipeline.config import UserError
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, on_every_rank, on_main
from pipeline.storage import sync_directory

log = logging.getLogger(__name__)


class CheckpointStore:
    """The generations of one run in one folder, which all ranks see."""

    def __init__(self, directory: Path | str, process: Process, keep: int = 2, keep_every_samples: int = 0) -> None:
        """Nothing is read or written yet; `keep` generations stay on disk, and the first of each
        `keep_every_samples`."""
        assert keep >= 1, keep
        self.directory, self.process, self.keep = Path(directory), process, keep
        self.keep_every_samples = keep_every_samples

    def save(self, progress: Mapping[str, Any], parts: Mapping[str, Stateful]) -> int:
        """Write a new generation and return its number. Collective.

        Args:
            progress: JSON values that `restore` gives back.
            parts: the state, by name; the names must stay the same for the life of the run.

        Raises:
            RankError, OSError: a rank could not write; what was there before is still good.
        """
        folder = on_main(self.process, self._begin)
        random = random_state(self.process.device)
        files = on_every_rank(lambda: write_rank_file(folder, self.process.rank, parts, random))
        scalars = {name: part.scalars() for name, part in parts.items()}
        on_main(self.process, lambda: with_retries(lambda: commit(folder, progress, scalars, files)))
        on_main(self.process, self._prune)
        return number_of(folder)

    def restore(self, parts: Mapping[str, Stateful]) -> dict[str, Any] | None:
        """Overwrite the live state with the newest good generation and return its progress. Collective.

        Returns:
            None when there is nothing to restore.

        Raises:
            UserError: all generations are damaged, or the newest good one does not fit the model.
        """
        while (path := on_main(self.process, self._newest)) is not None:
            damages = [damage for damage in on_every_rank(partial(self._damage, path)) if damage]
            if not damages:
                return self._load(Generation.open(path), parts)
            on_main(self.process, partial(self._quarantine, path, damages))
        return None

    def _begin(self) -> Path:
        """A fresh folder; numbers are never used twice, also not those of damaged generations."""
        taken = [number_of(path) for path in folders(self.directory) + folders(self.directory / QUARANTINE)]
        folder = folder_of(self.directory, max(taken, default=0) + 1)
        folder.mkdir(parents=True)
        sync_directory(self.directory)
        return folder

    def _prune(self) -> None:
        """Remove all but the newest committed generations, and what killed attempts left behind.

        Runs after a commit only, so the newest is whole; an unfinished folder is never counted as one of those kept.
        """
        kept = committed(self.directory)[: self.keep] + self._snapshots()
        for path in folders(self.directory):
            if path not in kept:
                (path / MANIFEST).unlink(missing_ok=True)  # first, so that it is unfinished while it goes
                shutil.rmtree(path, ignore_errors=True)

    def _snapshots(self) -> list[Path]:
        """The oldest generation of each stretch of `keep_every_samples`, the first stretch left out."""
        if not self.keep_every_samples:
            return []
        oldest: dict[int, Path] = {}
        for path in committed(self.directory):  # newest first
            with suppress(DamagedError):
                oldest[Generation.open(path).progress["samples_seen"] // self.keep_every_samples] = path
        return [path for stretch, path in oldest.items() if stretch > 0]

    def _newest(self) -> Path | None:
        found = committed(self.directory)
        quarantine = self.directory / QUARANTINE
        if not found and folders(quarantine):
            raise UserError(f"{quarantine} holds damaged checkpoints, no good one is left: move it away to start anew")
        return found[0] if found else None

    def _damage(self, path: Path) -> str:
        """What is wrong with this rank's share of the files; empty when nothing is."""
        try:
            generation = Generation.open(path)
            generation.verify(generation.files[self.process.rank :: self.process.world_size])
        except (DamagedError, OSError) as error:
            return str(error)
        return ""

    def _quarantine(self, path: Path, damages: list[str]) -> None:
        target = self.directory / QUARANTINE / path.name
        log.warning("checkpoint damaged (%s): moved to %s, trying the one before", "; ".join(damages), target)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        sync_directory(self.directory)

    def _load(self, generation: Generation, parts: Mapping[str, Stateful]) -> dict[str, Any]:
        reader = GenerationReader(generation)
        readers = {name: reader.part(name) for name in parts}
        on_every_rank(lambda: _check_shapes(parts, readers))
        for name, part in parts.items():
            part.restore(readers[name])
        set_random_state(self.process.device, lambda key: reader.rank_tensor(self.process.rank, key))
        for name in sorted(set(generation.scalars) - set(parts)):
            log.warning("checkpoint %s: part %s is not part of this run and was passed over", generation.path, name)
        return dict(generation.progress)


def _check_shapes(parts: Mapping[str, Stateful], readers: Mapping[str, PartReader]) -> None:
    """Refuse a generation of another model before anything is overwritten."""
    for name, part in parts.items():
        for fragment in part.fragments():
            stored = readers[name].shape(fragment.name, fragment.field)
            if stored != fragment.shape:
                there = "not there" if stored is None else f"of shape {stored}"
                raise UserError(
                    f"{readers[name].source.generation.path}: {name}.{fragment.name} is {there}, the config makes it "
                    f"{fragment.shape}: undo the change of the config, or start a new run folder"
                )

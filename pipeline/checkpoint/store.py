"""Saving and restoring the whole training state of a run, on all ranks together.

    save     every rank copies its share of the state; threads write, hash and fsync the copies beside the next steps
    commit   all agree that all have written -> rank 0 commits the manifest -> old generations go, in its thread
    restore  newest committed -> verified by all ranks, each some files -> damaged ones to quarantine, next older

A kill at any moment leaves either the old generation or the new one whole. Called by `pipeline.trainer`.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoint.generation import (
    MANIFEST,
    QUARANTINE,
    DamagedError,
    FileRecord,
    Generation,
    commit,
    committed,
    folder_of,
    folders,
    number_of,
)
from pipeline.checkpoint.mirror import Mirror
from pipeline.checkpoint.reader import GenerationReader, PartReader
from pipeline.checkpoint.retention import prune
from pipeline.checkpoint.staging import Snapshot, Staging, lay_out, shapes_of
from pipeline.checkpoint.writer import random_state, set_random_state, with_retries, write_rank_file
from pipeline.config import UserError
from pipeline.distributed.fragments import Stateful
from pipeline.distributed.process import Process, on_every_rank, on_main
from pipeline.storage import sync_directory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committed:
    """A generation that counts from now on."""

    number: int
    """Its number."""
    progress: dict[str, Any]
    """As it was given to `save`."""
    stall_seconds: float
    """How long the steps of this rank waited for it."""


@dataclass
class _Save:
    """A save in flight."""

    folder: Path
    progress: dict[str, Any]
    scalars: dict[str, dict[str, Any]]
    file: Future[FileRecord]
    copy: Future[bool]
    stall_seconds: float
    counts: bool = False
    """It is committed; only its copy on the mirror is not known to be whole."""


class CheckpointStore:
    """The generations of one run in one folder, which all ranks see. At most one save is in flight."""

    def __init__(
        self,
        directory: Path | str,
        process: Process,
        keep: int = 2,
        keep_every_samples: int = 0,
        mirror: str | None = None,
    ) -> None:
        """Nothing is read or written yet; `keep` generations stay on disk, and the first of each
        `keep_every_samples`; all of them are copied to the URL `mirror`."""
        assert keep >= 1, keep
        self.mirror = Mirror(mirror) if mirror else None
        self.directory, self.process, self.keep = Path(directory), process, keep
        self.keep_every_samples = keep_every_samples
        self._staging, self._snapshot = Staging(process.device), Snapshot({}, [])
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # one thread, so its jobs come one after the other
        self._save: _Save | None = None
        self._last_job: Future[Any] | None = None  # what the thread was given beside the saves

    def save(self, progress: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
        """Copy the state and have it written while the steps go on; `commit` makes it count. Collective.

        Args:
            progress: JSON values that `restore` gives back.
            parts: the state, by name; the names must stay the same for the life of the run.

        Raises:
            RankError, OSError: a rank could not begin; what was there before is still good.
        """
        assert self._save is None or self._save.counts, "commit the save before"
        began = time.monotonic()
        self._end_copy()
        folder = on_main(self.process, self._begin)
        on_every_rank(lambda: self._take(parts))
        random = random_state(self.process.device)
        file = self._thread.submit(write_rank_file, folder, self.process.rank, self._snapshot, random)
        copy = self._thread.submit(self._copy, folder, file)
        scalars = {name: part.scalars() for name, part in parts.items()}
        self._save = _Save(folder, dict(progress), scalars, file, copy, time.monotonic() - began)

    @property
    def written(self) -> bool:
        """True when this rank's share of the save in flight is on disk, or has failed: `commit` will not wait for it;
        and again when the mirror has it as well. Ranks see it at different moments: agree before acting on it."""
        return self._save is not None and (self._save.copy if self._save.counts else self._save.file).done()

    def commit(self) -> Committed | None:
        """Wait until every rank has written its share, and make the generation count; called again, its copy.

        Collective. So a mirror that hangs costs the copy alone.

        Returns:
            None when no save is in flight, or only a copy.

        Raises:
            RankError, OSError: a rank could not write; what was there before is still good.
        """
        if (save := self._save) is None:
            return None
        if save.counts:
            self._end_copy()
            return None
        self._save, began = None, time.monotonic()
        files = on_every_rank(save.file.result)
        on_main(self.process, lambda: with_retries(lambda: commit(save.folder, save.progress, save.scalars, files)))
        self._save, save.counts = save, True
        if self.mirror is None:
            self._end_copy()
        stall_seconds = save.stall_seconds + time.monotonic() - began
        return Committed(number_of(save.folder), save.progress, stall_seconds)

    def settle(self) -> None:
        """Return when the threads have nothing left to do, and raise what failed there since. Collective."""
        self._end_copy()
        self._wait()

    def _end_copy(self) -> None:
        """Of what counts already: wait until the mirror has it, if it ever will, and then for nothing more."""
        if (save := self._save) is not None and save.counts:
            self._save = None
            copied = self.mirror is not None and all(on_every_rank(save.copy.result))
            if self.process.is_main:
                self._last_job = self._thread.submit(self._tidy, save.folder, copied)

    def _wait(self) -> None:
        """Until this rank's thread has done its last job beside the saves."""
        if self._last_job is not None:
            self._last_job.result()

    def restore(self, parts: Mapping[str, Stateful]) -> dict[str, Any] | None:
        """Overwrite the live state with the newest good generation and return its progress. Collective.

        Returns:
            None when there is nothing to restore.

        Raises:
            UserError: all generations are damaged, or the newest good one does not fit the model.
        """
        progress = None
        while (path := on_main(self.process, self._newest)) is not None:
            damages = [damage for damage in on_every_rank(partial(self._damage, path)) if damage]
            if not damages:
                progress = self._load(Generation.open(path), parts)
                break
            on_main(self.process, partial(self._quarantine, path, damages))
        self._last_job = self._thread.submit(self._staging.prepare, shapes_of(lay_out(parts)[0]))
        return progress

    def _begin(self) -> Path:
        """A fresh folder; numbers are never used twice, also not those of damaged generations."""
        self._wait()  # a removal that still goes on would take the fresh folder along
        taken = [number_of(path) for path in folders(self.directory) + folders(self.directory / QUARANTINE)]
        folder = folder_of(self.directory, max(taken, default=0) + 1)
        folder.mkdir(parents=True)
        sync_directory(self.directory)
        return folder

    def _take(self, parts: Mapping[str, Stateful]) -> None:
        self._wait()  # the thread may still make the buffers
        self._snapshot = self._staging.take(parts)

    def _copy(self, folder: Path, file: Future[FileRecord]) -> bool:
        """In the thread, behind the writing of this rank's file: whether the mirror has it as well."""
        return self.mirror is not None and file.exception() is None and self.mirror.put(folder, file.result().name)

    def _tidy(self, folder: Path, is_mirrored: bool) -> None:
        """In the thread of rank 0, after a commit."""
        kept = prune(self.directory, self.keep, self.keep_every_samples)
        if self.mirror is not None and is_mirrored and self.mirror.put(folder, MANIFEST):
            try:
                self.mirror.keep(map(number_of, kept), self.keep_every_samples)
            except (OSError, UserError) as error:
                log.warning("checkpoint: old copies stay on %s: %s", self.mirror.url, error)

    def _newest(self) -> Path | None:
        found, quarantine = committed(self.directory), self.directory / QUARANTINE
        if self.mirror is not None:
            bad = {number_of(path) for path in folders(quarantine)}
            copies = [n for n in self.mirror.committed() if n not in bad]
            if copies and copies[0] > max(map(number_of, found), default=0):
                log.warning("checkpoint: fetching generation %d from %s", copies[0], self.mirror.url)
                self.mirror.fetch(copies[0], self.directory)
                found = committed(self.directory)
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

"""A second place for generations, on an object store: for run folders on disks that go with their machine.

Each rank uploads its file once it is whole on disk, in the same thread; rank 0 uploads the manifest when all have, and
that is what makes the copy count. An upload that fails after all attempts costs this copy and no more: it is told, and
the next generation is tried anew. Called by `store`.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline import storage
from pipeline.checkpoint.generation import MANIFEST, DamagedError, Generation, folder_of, number_of
from pipeline.checkpoint.retention import snapshots
from pipeline.config import UserError

log = logging.getLogger(__name__)


class Mirror:
    """The generations under one URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._samples_seen: dict[int, int] = {}
        """Of each generation here, as far as it was asked for."""

    def put(self, folder: Path, name: str) -> bool:
        """Upload a file of a generation; False when the store did not take it."""
        try:
            storage.upload(folder / name, storage.join(self.url, folder.name, name))
        except (OSError, UserError) as error:
            log.warning("checkpoint: %s is not on %s: %s", folder.name, self.url, error)
            return False
        return True

    def committed(self) -> list[int]:
        """Numbers of the generations whose manifest is there, newest first.

        Raises:
            UserError, OSError: the store cannot be asked.
        """
        names = [name for name in storage.list_names(self.url) if name.startswith("gen-")]
        numbers = sorted((number_of(Path(name)) for name in names), reverse=True)
        return [n for n in numbers if storage.exists(self._place(n, MANIFEST))]

    def fetch(self, number: int, directory: Path) -> None:
        """Bring a generation into `directory`; it appears under its name only when all of it is there.

        Raises:
            UserError, OSError: its manifest is damaged or of another version, or a file cannot be had.
        """
        target = folder_of(directory, number)
        for left in directory.glob(".gen-*.partial"):  # of a fetch that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = directory / f".{target.name}.partial"
        partial.mkdir(parents=True)
        storage.download(self._place(number, MANIFEST), partial / MANIFEST)
        try:
            records = Generation.open(partial).files
        except DamagedError as error:
            raise UserError(f"{self._place(number)}: {error}; move this copy away to go on from an older one") from None
        for record in records:
            storage.download(self._place(number, record.name), partial / record.name)
        shutil.rmtree(target, ignore_errors=True)  # one that was never whole
        partial.rename(target)
        storage.sync_directory(directory)

    def keep(self, numbers: Iterable[int], keep_every_samples: int = 0) -> None:
        """Remove all other generations, their manifest first.

        Snapshots stay by the copies' own counting: a disk that went with its machine took its older ones along.
        """
        copies = self.committed()
        kept = set(numbers)
        if keep_every_samples:
            kept |= snapshots({number: self._samples_at(number) for number in copies}, keep_every_samples)
        for number in copies:
            if number not in kept:
                names = storage.list_names(self._place(number))
                for name in sorted(names, key=lambda name: name != MANIFEST):
                    storage.remove(self._place(number, name))

    def _samples_at(self, number: int) -> int:
        if number not in self._samples_seen:
            manifest = storage.read_json(self._place(number, MANIFEST))
            self._samples_seen[number] = int(manifest["content"]["progress"]["samples_seen"])
        return self._samples_seen[number]

    def _place(self, number: int, *names: str) -> str:
        return storage.join(self.url, folder_of(Path(), number).name, *names)

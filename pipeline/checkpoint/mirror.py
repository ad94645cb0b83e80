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
from pipeline.checkpoint.generation import MANIFEST, Generation, folder_of, number_of
from pipeline.config import UserError

log = logging.getLogger(__name__)


class Mirror:
    """The generations under one URL."""

    def __init__(self, url: str) -> None:
        self.url = url

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
        """Bring a generation into `directory`; it appears under its name only when all of it is there."""
        target = folder_of(directory, number)
        partial = directory / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        storage.download(self._place(number, MANIFEST), partial / MANIFEST)
        for record in Generation.open(partial).files:
            storage.download(self._place(number, record.name), partial / record.name)
        shutil.rmtree(target, ignore_errors=True)  # one that was never whole
        partial.rename(target)
        storage.sync_directory(directory)

    def keep(self, numbers: Iterable[int]) -> None:
        """Remove all other generations, their manifest first."""
        kept = set(numbers)
        for number in self.committed():
            if number not in kept:
                names = storage.list_names(self._place(number))
                for name in sorted(names, key=lambda name: name != MANIFEST):
                    storage.remove(self._place(number, name))

    def _place(self, number: int, *names: str) -> str:
        return storage.join(self.url, folder_of(Path(), number).name, *names)

"""A real disk of a few megabytes to be filled to the last byte: a memory file system, mounted by root or sudo."""

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNKS_BYTES = (1 << 20, 1 << 12, 1)


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system of its own."""

    folder: Path
    """Where it is mounted; everybody may enter it."""

    def fill(self) -> None:
        """Leave no room; what was freed since the last call is taken too."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in CHUNKS_BYTES:
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "ballast").unlink()


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """A disk of that size, until the block ends.

    Raises:
        OSError: nobody here may mount one.
    """
    as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    place = Path(tempfile.mkdtemp(prefix="tessera-disk-"))  # not below the tests' folder: only its owner may enter it
    try:
        options = f"size={megabytes}m,mode=0755,uid={os.geteuid()},gid={os.getegid()}"
        mount = [*as_root, "mount", "-t", "tmpfs", "-o", options, "tessera-test", str(place)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"no small disk here: {done.stderr.strip()}; be root, or let sudo ask for no password")
        try:
            yield SmallDisk(place)
        finally:
            subprocess.run([*as_root, "umount", "--lazy", str(place)], check=True)
    finally:
        place.rmdir()

"""One generation on disk: `gen-000123/{rank-00000.safetensors, ..., manifest.json}`, and the list of those there are.

The manifest is written last and names every file with its sha256, and itself: a folder without it is unfinished, a
folder that does not match it is damaged. Written by `store`, read by it, by `reader` and by the export.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.storage import sha256_of, write_json

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"
SCHEMA_VERSION = 1
_NAME = re.compile(r"gen-(\d{6,})")


class DamagedError(Exception):
    """A generation is not what its manifest says; the message names the file."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written."""

    name: str
    """Name inside the generation's folder."""
    num_bytes: int
    """Length."""
    sha256: str
    """Digest of the contents, hexadecimal."""


@dataclass(frozen=True)
class Generation:
    """A committed generation: its manifest was read and is whole; its files were not looked at yet."""

    path: Path
    """Folder of the generation."""
    progress: dict[str, Any]
    """How far the run had come, as the trainer said."""
    scalars: dict[str, dict[str, Any]]
    """The small values of each part, by the name of the part."""
    files: list[FileRecord]
    """One file for each rank that wrote, in rank order."""

    @property
    def number(self) -> int:
        """Its place in the order of generations."""
        return number_of(self.path)

    @classmethod
    def open(cls, path: Path) -> "Generation":
        """Read the manifest.

        Raises:
            DamagedError: it is missing, torn, altered, or of another schema.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            digest, content = manifest["digest"], manifest["content"]
            files = [FileRecord(**record) for record in content["files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{path.name}/{MANIFEST}: {error!r}") from None
        if digest != _digest(content):
            raise DamagedError(f"{path.name}/{MANIFEST}: altered since it was written")
        if content["schema_version"] != SCHEMA_VERSION:
            raise DamagedError(f"{path.name}/{MANIFEST}: schema {content['schema_version']}, this is {SCHEMA_VERSION}")
        return cls(path, content["progress"], content["scalars"], files)

    def verify(self, files: Iterable[FileRecord] | None = None) -> None:
        """Compare `files` (all, when not given) with their records.

        Raises:
            DamagedError: a file is missing, of another length, or of another digest.
        """
        for record in self.files if files is None else files:
            path = self.path / record.name
            if not path.is_file():
                raise DamagedError(f"{self.path.name}/{record.name}: missing")
            if path.stat().st_size != record.num_bytes:
                raise DamagedError(
                    f"{self.path.name}/{record.name}: {path.stat().st_size} bytes, {record.num_bytes} were written"
                )
            if sha256_of(path) != record.sha256:
                raise DamagedError(f"{self.path.name}/{record.name}: contents altered since they were written")


def commit(
    path: Path, progress: Mapping[str, Any], scalars: Mapping[str, Mapping[str, Any]], files: list[FileRecord]
) -> None:
    """Write the manifest: from this moment the generation counts. All files must be durable already."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "progress": dict(progress),
        "scalars": {part: dict(values) for part, values in scalars.items()},
        "files": [asdict(record) for record in files],
    }
    write_json(path / MANIFEST, {"content": content, "digest": _digest(content)})


def folder_of(directory: Path, number: int) -> Path:
    """The folder of generation `number`."""
    return directory / f"gen-{number:06d}"


def number_of(path: Path) -> int:
    """The number in the name of a generation's folder."""
    match = _NAME.match(path.name)
    assert match is not None, path
    return int(match[1])


def folders(directory: Path) -> list[Path]:
    """The folders of all generations, finished or not, newest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=number_of, reverse=True)


def committed(directory: Path) -> list[Path]:
    """The folders that have a manifest, newest first."""
    return [path for path in folders(directory) if (path / MANIFEST).is_file()]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""The contract between the writers and the readers of shards: file names, the manifest, the tar index.

A dataset is a folder (or object-store prefix) of plain tars. Beside each `00000.tar` lie `00000.tar.idx` (where each
sample starts), `00000.parquet` (one row per input) and `00000_stats.json` (written last: the shard is done), and one
`manifest.json` names them all. Called by `data_tools`, which writes this, and by the loader, which reads it; the bytes
inside a tar are the business of `pipeline.data.tar`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import IO, Any, Literal

import numpy as np

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.tar import TarSample, write_samples

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

Kind = Literal["images", "latents"]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One tar of a manifest; a large dataset has a hundred thousand."""

    name: str
    """File name inside the dataset folder, such as `00000.tar`."""
    num_samples: int
    num_bytes: int
    sha256: str
    """Hex digest of the whole tar."""


@dataclass(frozen=True)
class Manifest:
    """The whole dataset in one small file: what the loader needs before its first read."""

    kind: Kind
    shards: tuple[ShardRecord, ...]
    fingerprint: str = ""
    """Hex digest of the inputs and the config that made the shards; empty for tars of foreign origin."""
    stamp: dict[str, Any] | None = None
    """Where latents come from (see `pipeline.data.latents`); None for images."""
    schema_version: int = SCHEMA_VERSION

    @cached_property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """sha256 hex digest of the canonical JSON: the name of this dataset in checkpoints, stamps and lineage."""
        text = json.dumps(self._tree(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, url: str) -> None:
        """Write `manifest.json` into the dataset folder `url`, whole or not at all."""
        storage.write_json(storage.join(url, MANIFEST_NAME), self._tree())

    def _tree(self) -> dict[str, Any]:
        """As JSON values; `asdict` would copy every shard twice, and there may be a hundred thousand."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"shards": [{name: getattr(shard, name) for name in shard.__slots__} for shard in self.shards]}


def load_manifest(url: str) -> Manifest:
    """The manifest of the dataset folder `url`.

    Raises:
        UserError: there is none, it is not one of ours, or a newer version of the project wrote it.
    """
    place = storage.join(url, MANIFEST_NAME)
    try:
        tree = storage.read_json(place)
    except FileNotFoundError:
        raise UserError(
            f"{place}: not found; index existing tars with `tessera-data index {url}`,"
            f" or make shards with `tessera-data shard INPUT --out {url}`"
        ) from None
    except ValueError:
        raise UserError(f"{place}: not valid JSON; write it again with `tessera-data index {url}`") from None
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{place}: schema_version {version!r}, this version reads {SCHEMA_VERSION}; index it again")
    try:
        shards = tuple(ShardRecord(**row) for row in tree.pop("shards"))
        return Manifest(shards=shards, **tree)
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: {error}; write it again with `tessera-data index {url}`") from None


def write_shard(url: str, name: str, samples: Iterable[TarSample]) -> ShardRecord:
    """Write the tar `name` into the dataset folder `url`, then its index; hashed on the way, so never read again."""
    with storage.writing(storage.join(url, name)) as file:
        hashed = _HashedFile(file)
        offsets = write_samples(hashed, samples)
    write_index(storage.join(url, index_name(name)), offsets)
    return ShardRecord(name, len(offsets) - 1, hashed.num_bytes, hashed.sha256.hexdigest())


def shard_name(shard_id: int) -> str:
    """`00000.tar`."""
    return f"{shard_id:05d}.tar"


def index_name(shard: str) -> str:
    """`00000.tar` -> `00000.tar.idx`."""
    return f"{shard}.idx"


def table_name(shard: str) -> str:
    """`00000.tar` -> `00000.parquet`."""
    return f"{shard.removesuffix('.tar')}.parquet"


def stats_name(shard: str) -> str:
    """`00000.tar` -> `00000_stats.json`."""
    return f"{shard.removesuffix('.tar')}_stats.json"


def write_index(url: str, offsets: np.ndarray) -> None:
    """Write a `.tar.idx`: uint64 [n + 1], the first header of each sample, then the end of the last sample.

    This is the index of Megatron-Energon (raw native-endian words), so Energon reads our shards and we read its.
    """
    storage.write_bytes(url, offsets.astype("<u8").tobytes())


def read_index(url: str) -> np.ndarray:
    """The uint64 [n + 1] offsets of a `.tar.idx`.

    Raises:
        UserError: no such file, or not a whole number of words.
    """
    remedy = f"write it with `tessera-data index {url.rpartition('/')[0] or '.'}`"
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"{url}: not found; {remedy}") from None
    if len(data) % 8 or not data:
        raise UserError(f"{url}: {len(data)} bytes are not an index of 64-bit offsets; {remedy}")
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


class _HashedFile:
    """Hashes and counts what is written through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        """As of a binary file."""
        self.sha256.update(data)
        self.num_bytes += len(data)
        return self._file.write(data)

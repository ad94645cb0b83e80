"""Tars of foreign origin -> a dataset: an index beside each, and a manifest that names them all.

The tars stay as they are, and only their headers are read: of a remote one, ranged reads jump over the bodies. Called
by `tessera-data index`.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_tools.pool import Engine, map_unordered
from data_tools.sidecars import DaliIndex, write_sidecars
from data_tools.tars import PICTURES, headers_of, sample_spans
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import MANIFEST_NAME, Manifest, ShardRecord, index_name, load_manifest, write_index
from pipeline.data.tar import Buffer, TarError

HEADERS_PREFIX = "headers:"
"""Stands before the digest of a tar whose bodies were not read."""


@dataclass(frozen=True)
class IndexTask:
    """One tar to index."""

    url: str
    name: str


@dataclass(frozen=True)
class Indexed:
    """What came of it."""

    record: ShardRecord
    extensions: tuple[str, ...]
    """Members of the first sample."""


def index_dataset(url: str, num_workers: int) -> dict[str, Any]:
    """Index every tar directly in the folder `url`; the summary of the dataset.

    Raises:
        UserError: no tars, a broken tar, members of one sample that are not neighbours, or samples without pictures.
    """
    names = [name for name in storage.list_names(url) if name.endswith(".tar")]
    if not names:
        raise UserError(f"{url}: no .tar here; give the folder that holds the tars")
    if _is_indexed(url, names):
        manifest, written = load_manifest(url), 0
    else:
        tasks = [IndexTask(url, name) for name in names]
        engine: Engine = "process" if storage.is_local(url) else "thread"  # what is remote waits more than it works
        found = map_unordered(index_shard, tasks, len(tasks), num_workers, f"indexing {url}", engine)
        indexed = sorted(found, key=lambda shard: shard.record.name)
        manifest, written = Manifest("images", tuple(shard.record for shard in indexed)), len(indexed)
        write_sidecars(url, manifest, indexed[0].extensions)
        manifest.save(url)
    return {
        "url": url,
        "shards": len(manifest.shards),
        "samples": manifest.num_samples,
        "bytes": manifest.num_bytes,
        "digest": manifest.digest,
        "indexed_now": written,
    }


def index_shard(task: IndexTask) -> Indexed:
    """Write the indexes of one tar; its line for the manifest.

    Raises:
        UserError: see `index_dataset`.
    """
    place = storage.join(task.url, task.name)
    dali, keys, offsets, end = DaliIndex(), Counter[str](), [], 0
    extensions: tuple[str, ...] = ()
    try:
        with headers_of(place) as headers:
            for span in sample_spans(headers):
                dali.add(span)
                keys[span.key] += 1
                extensions = extensions or span.extensions
                offsets.append(span.span[0])
                end = span.span[1]
            num_bytes = len(headers)
    except TarError as error:
        raise UserError(f"{place}: not a whole, uncompressed tar: {error}") from None
    _check_samples(place, keys, extensions)
    write_index(storage.join(task.url, index_name(task.name)), np.array([*offsets, end], dtype=np.uint64))
    if dali.is_valid:
        dali.save(task.url, task.name)
    digest = HEADERS_PREFIX + hashlib.sha256(f"{num_bytes}\n{dali.text()}".encode()).hexdigest()
    return Indexed(ShardRecord(task.name, len(offsets), num_bytes, digest), extensions)


def headers_digest(buffer: Buffer) -> str:
    """`headers:` and a sha256 hex digest of a tar's length and its members' names, places and sizes.

    Raises:
        TarError: the tar is broken.
    """
    dali = DaliIndex()
    for span in sample_spans(buffer):
        dali.add(span)
    return HEADERS_PREFIX + hashlib.sha256(f"{len(buffer)}\n{dali.text()}".encode()).hexdigest()


def _check_samples(place: str, keys: Counter[str], extensions: tuple[str, ...]) -> None:
    """Refuse what a reader would mistake: scattered samples, and samples without a picture."""
    if not keys:
        raise UserError(f"{place}: no samples inside; remove it")
    key, count = keys.most_common(1)[0]
    if count > 1:
        raise UserError(f"{place}: the members of {key} are not neighbours; pack it again with `tar --sort=name`")
    if not set(extensions) & set(PICTURES):
        found, needed = ", ".join(sorted(extensions)), ", ".join(PICTURES)
        raise UserError(f"{place}: samples of {found} hold no picture; needed is {needed}")


def _is_indexed(url: str, names: list[str]) -> bool:
    """True when a manifest names just these tars with the sizes that they have, and each has its index."""
    there = set(storage.list_names(url))
    if MANIFEST_NAME not in there or not all(index_name(name) in there for name in names):
        return False
    fs, folder = storage.filesystem(url)
    sizes = {record.name: record.num_bytes for record in load_manifest(url).shards}
    return sizes == {name: fs.size(storage.join(folder, name)) for name in names}

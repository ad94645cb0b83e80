"""Tars of foreign origin -> a dataset: an index beside each, and a manifest that names them all.

The tars themselves stay as they are. Called by `tessera-data index`.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from data_tools.pool import map_unordered
from data_tools.tars import PICTURES, opened, sample_keys
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.shards import MANIFEST_NAME, Manifest, ShardRecord, index_name, load_manifest, write_index
from pipeline.data.tar import Buffer, TarError, parse_samples, sample_offsets


@dataclass(frozen=True)
class IndexTask:
    """One tar to index."""

    url: str
    name: str


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
        records = sorted(map_unordered(index_shard, tasks, num_workers, f"indexing {url}"), key=lambda r: r.name)
        manifest, written = Manifest("images", tuple(records)), len(records)
        manifest.save(url)
    return {
        "url": url,
        "shards": len(manifest.shards),
        "samples": manifest.num_samples,
        "bytes": manifest.num_bytes,
        "digest": manifest.digest,
        "indexed_now": written,
    }


def index_shard(task: IndexTask) -> ShardRecord:
    """Write the index of one tar; its line for the manifest.

    Raises:
        UserError: see `index_dataset`.
    """
    place = storage.join(task.url, task.name)
    with opened(place) as buffer:
        try:
            offsets = sample_offsets(buffer)
            _check_samples(place, buffer, int(offsets[1]) if len(offsets) > 1 else 0)
        except TarError as error:
            raise UserError(f"{place}: not a whole, uncompressed tar: {error}") from None
        record = ShardRecord(task.name, len(offsets) - 1, len(buffer), hashlib.sha256(buffer).hexdigest())
    write_index(storage.join(task.url, index_name(task.name)), offsets)
    return record


def _check_samples(place: str, buffer: Buffer, end_of_first: int) -> None:
    """Refuse what a reader would mistake: scattered samples, and samples without a picture."""
    if not end_of_first:
        raise UserError(f"{place}: no samples inside; remove it")
    key, count = Counter(sample_keys(buffer)).most_common(1)[0]
    if count > 1:
        raise UserError(f"{place}: the members of {key} are not neighbours; pack it again with `tar --sort=name`")
    extensions = sorted(parse_samples(buffer[:end_of_first])[0].members)
    if not set(extensions) & set(PICTURES):
        raise UserError(f"{place}: samples of {', '.join(extensions)} hold no picture; needed is {', '.join(PICTURES)}")


def _is_indexed(url: str, names: list[str]) -> bool:
    """True when a manifest names just these tars with the sizes that they have, and each has its index."""
    there = set(storage.list_names(url))
    if MANIFEST_NAME not in there or not all(index_name(name) in there for name in names):
        return False
    fs, folder = storage.filesystem(url)
    sizes = {record.name: record.num_bytes for record in load_manifest(url).shards}
    return sizes == {name: fs.size(storage.join(folder, name)) for name in names}

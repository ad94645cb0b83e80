"""What a dataset looks like, in numbers and a few pictures: all that the report page shows.

Numbers come from the shards' tables where there are some, else from the tars. Called by `data_tools.report`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data_tools.progress import track
from data_tools.rows import rows_of_shard
from data_tools.table import SUCCESS
from data_tools.tars import picture_of
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.ranged import RangedReader
from pipeline.data.shards import Manifest, ShardRecord, index_name, load_manifest, read_index
from pipeline.data.tar import caption_of, parse_samples


@dataclass(frozen=True)
class Sight:
    """One sample for the contact sheet."""

    key: str
    caption: str
    image: Image.Image


@dataclass
class Survey:
    """Counts over all rows of a dataset."""

    manifest: Manifest
    failures: Counter[str] = field(default_factory=Counter)
    """Reason -> inputs that are not in the tars."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) of the stored pictures."""
    original_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) as found, upright."""
    caption_lengths: Counter[int] = field(default_factory=Counter)
    """In words."""
    words: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    """sha256 of the picture's file as found."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of a shard's table."""
        if row["status"] != SUCCESS:
            self.failures[row["error_message"] or row["status"]] += 1
            return
        words = (row["caption"] or "").lower().split()
        self.caption_lengths[len(words)] += 1
        self.words.update(words)
        self.captions[row["caption"] or ""] += 1
        self.pictures[row["sha256"]] += 1
        self.sizes[row["width"], row["height"]] += 1
        self.original_sizes[row["original_width"], row["original_height"]] += 1


def survey(url: str) -> Survey:
    """Read the tables (or tars) of all shards.

    Raises:
        UserError: no manifest, no pictures, or a shard is gone.
    """
    manifest = load_manifest(url)
    if manifest.kind != "images":
        raise UserError(f"{url}: holds {manifest.kind}; give the shards of pictures that they were made of")
    found = Survey(manifest)
    for record in track(manifest.shards, len(manifest.shards), f"reading {url}"):
        for row in rows_of_shard(url, record):
            found.add(row)
    return found


def sights(url: str, manifest: Manifest, num: int) -> list[Sight]:
    """Up to `num` samples, evenly spread over the dataset; what does not decode is left out."""
    chosen = np.unique(np.linspace(0, manifest.num_samples - 1, num).round().astype(int))
    found, first = [], 0
    for record in manifest.shards:
        places = chosen[(chosen >= first) & (chosen < first + record.num_samples)] - first
        first += record.num_samples
        if len(places):
            offsets = read_index(storage.join(url, index_name(record.name)))
            found += [sight for place in places if (sight := _sight(url, record, offsets, int(place)))]
    return found


def _sight(url: str, record: ShardRecord, offsets: np.ndarray, place: int) -> Sight | None:
    """Sample `place` of a shard, by one ranged read."""
    span = int(offsets[place]), int(offsets[place + 1])
    sample = parse_samples(RangedReader().read(storage.join(url, record.name), *span))[0]
    try:
        image = decode_image(picture_of(sample) or b"")
    except DecodeError:
        return None
    return Sight(sample.key, caption_of(sample), Image.fromarray(image))

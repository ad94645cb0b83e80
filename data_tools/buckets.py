"""Which shape each picture of a dataset is cut to, by the sizes in the shards' tables. For `tessera-data buckets`."""

import numpy as np
from pydantic import Field

from data_tools.rows import UNREADABLE, rows_of_shard
from data_tools.shard_writer import SUCCESS
from pipeline.config import Config, UserError
from pipeline.data.buckets import Buckets, nearest_shapes, shapes_near
from pipeline.data.shards import Manifest, ShardRecord

MAX_SHAPES = 256
"""What one byte a sample can name."""


class BucketsConfig(Config):
    """Which shapes there are."""

    image_size: int = Field(gt=0)
    """Side in pixels of the square whose area no shape exceeds."""
    multiple: int = Field(default=32, gt=0)
    """Sides of all shapes are multiples of it: that of the autoencoder's factor and the UNet's halvings."""
    max_aspect: float = Field(default=2.0, ge=1.0)
    """Longer side over shorter side of the longest shape."""


def make_buckets(url: str, manifest: Manifest, config: BucketsConfig) -> Buckets:
    """The nearest shape of every sample by its aspect ratio; an unreadable one counts as square.

    Raises:
        UserError: no pictures, no shape at all or more than a byte can name, or a table that does not fit its tar.
    """
    if manifest.kind != "images":
        raise UserError(f"{url}: holds {manifest.kind}; buckets are made of pictures")
    shapes = shapes_near(config.image_size, config.multiple, config.max_aspect)
    if not shapes:
        raise UserError(
            f"--multiple {config.multiple}: no shape of {config.image_size} squared pixels; make it smaller"
        )
    if len(shapes) > MAX_SHAPES:
        raise UserError(
            f"--multiple {config.multiple}: makes {len(shapes)} shapes, {MAX_SHAPES} at most; make it larger"
        )
    sizes = (_sizes(url, record) for record in manifest.shards)
    numbers = [nearest_shapes(heights, widths, shapes) for heights, widths in sizes]
    return Buckets(manifest.digest, shapes, np.concatenate([np.empty(0, np.uint8), *numbers]))


def _sizes(url: str, record: ShardRecord) -> np.ndarray:
    """Heights and widths of a shard's samples as they are stored, int64 [2, n]."""
    rows = [row for row in rows_of_shard(url, record) if row["status"] in (SUCCESS, UNREADABLE)]
    if len(rows) != record.num_samples:
        raise UserError(f"{record.name}: its table does not fit its tar; run `tessera-data validate {url} --repair`")
    sizes = [(row["height"] or 1, row["width"] or 1) for row in rows]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2).T

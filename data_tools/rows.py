"""What is known of every input of a dataset, row by row: from a shard's table, else from the tar itself.

Called by the report's survey and by the masks.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError
from pyarrow import parquet

from data_tools.table import OWN_COLUMNS, SUCCESS
from data_tools.tars import opened, picture_of, sample_spans
from pipeline import storage
from pipeline.data.shards import ShardRecord, table_name
from pipeline.data.tar import TarSample, caption_of, metadata_of, parse_samples

UNREADABLE = "unreadable"
"""Status of a sample of a tar of foreign origin whose picture does not open."""

Row = Mapping[str, Any]


def rows_of_shard(url: str, record: ShardRecord) -> Iterator[Row]:
    """The rows of one shard's table, failures too, or the same facts gathered from a tar without one."""
    table = storage.join(url, table_name(record.name))
    if not storage.exists(table):
        yield from _rows_of_tar(storage.join(url, record.name))
        return
    nothing = dict.fromkeys(OWN_COLUMNS)
    for batch in parquet.ParquetFile(io.BytesIO(storage.read_bytes(table))).iter_batches():
        yield from (nothing | row | {"caption": row.get("caption") or ""} for row in batch.to_pylist())


def _rows_of_tar(url: str) -> Iterator[Row]:
    """One row for each sample of a tar of foreign origin; only the pictures' headers are decoded."""
    with opened(url) as buffer:
        for span in sample_spans(buffer):
            yield _row_of_sample(parse_samples(buffer[slice(*span.span)])[0])


def _row_of_sample(sample: TarSample) -> Row:
    """What the table of a shard would say about a sample, and the fields of its metadata."""
    try:
        fields = json.loads(metadata_of(sample))
    except ValueError:
        fields = {}
    row: dict[str, Any] = dict.fromkeys(OWN_COLUMNS) | (fields if isinstance(fields, dict) else {})
    data = picture_of(sample) or b""
    row |= {"key": sample.key, "caption": caption_of(sample), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        width, height = Image.open(io.BytesIO(data)).size
    except UnidentifiedImageError:
        return row | {"status": UNREADABLE, "error_message": "no picture inside the sample"}
    found = {"original_width": row["original_width"] or width, "original_height": row["original_height"] or height}
    return row | {"width": width, "height": height, **found, "status": SUCCESS, "error_message": None}

"""The table beside a shard, one row for every input, failures too: its columns, written and read.

Columns are named as img2dataset names them. Called by the shard writers, the checks, the repair and the masks.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ArrowException, parquet

from pipeline import storage
from pipeline.data.shards import table_name
from pipeline.data.tar import TarSample, metadata_of

SUCCESS, UNREADABLE, REFUSED = "success", "failed_to_download", "failed_to_resize"
OWN_COLUMNS = {
    "caption": pa.string(),
    "url": pa.string(),
    "key": pa.string(),
    "status": pa.string(),
    "error_message": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "sha256": pa.string(),
    "sample_sha256": pa.string(),
}
"""Columns of a shard's table without those of the input, which stand after `url`. sha256: of the picture as found, as
img2dataset has it; sample_sha256: of the sample as stored (`sample_digest`)."""

NUMPY_TYPES = {"int32": np.int32, "int64": np.int64, "double": np.float64, "bool": np.bool_}
"""By Arrow's names; `to_pandas_dtype` would import pandas."""

Row = dict[str, Any]


def free_name(column: str) -> str:
    """The name of a further column: with `input_` before it where the shard's table needs the name itself."""
    return f"input_{column}" if column in OWN_COLUMNS else column


def table_bytes(rows: Sequence[Row], extra_columns: Mapping[str, str]) -> bytes:
    """The rows as a Parquet file: input columns first, then what became of each."""
    extra = {name: pa.type_for_alias(alias) for name, alias in extra_columns.items()}
    own = list(OWN_COLUMNS.items())
    schema = pa.schema([*own[:2], *extra.items(), *own[2:]])
    columns = [column_of([_cell(row.get(field.name), field.type) for row in rows], field.type) for field in schema]
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(columns, schema=schema), file)
    return file.getvalue()


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The values as text, numbers or truth values, None as null.

    `pa.array` would do, but it imports pandas wherever that is installed: half a second and 50 MB in every worker.
    """
    there = pa.py_buffer(np.packbits(np.array([value is not None for value in values], bool), bitorder="little"))
    if pa.types.is_string(kind):
        texts = [(value or "").encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
    numbers: np.ndarray = np.array([value or 0 for value in values], dtype=NUMPY_TYPES[str(kind)])
    data = np.packbits(numbers, bitorder="little") if pa.types.is_boolean(kind) else numbers
    return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(data)])


def _cell(value: Any, kind: pa.DataType) -> Any:
    """A value that fits its column: what is not text goes into a text column as JSON, what is no number nowhere."""
    if value is None or pa.types.is_integer(kind):
        return value
    if kind == pa.bool_():
        return value if isinstance(value, bool) else None
    if kind == pa.float64():
        return float(value) if isinstance(value, int | float) else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def table_rows(url: str, shard: str, columns: list[str] | None = None) -> list[dict[str, Any]] | None:
    """The rows of a shard's table; none of them when it is broken, None when there is no table."""
    place = storage.join(url, table_name(shard))
    if not storage.exists(place):
        return None
    try:
        file = parquet.ParquetFile(io.BytesIO(storage.read_bytes(place)))
        there = file.schema_arrow.names
        return file.read([name for name in columns or there if name in there]).to_pylist()
    except ArrowException:
        return []


def sample_digest(members: Mapping[str, bytes]) -> str:
    """sha256 hex digest of a stored sample: its members by extension, each with its length."""
    digest = hashlib.sha256()
    for extension in sorted(members):
        digest.update(f"{extension} {len(members[extension])}\n".encode())
        digest.update(members[extension])
    return digest.hexdigest()


def row_of(sample: TarSample) -> Row:
    """The row that a sample carries in its metadata."""
    return json.loads(metadata_of(sample)) | {"sample_sha256": sample_digest(sample.members)}

"""One shard from a list of pairs: tar, index, table, and last of all the stats file that says it is whole.

Runs in worker processes and depends on its task alone, so that any number of workers writes the same bytes. Keys, table
columns and stats are named as img2dataset names them. Called by `data_tools.shard`.
"""

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from data_tools.pixels import BadImage, ResizeMode, prepare
from data_tools.sources import Pair
from pipeline import storage
from pipeline.data.shards import ShardRecord, shard_name, stats_name, table_name, write_shard
from pipeline.data.tar import TarSample

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
}
"""Columns of a shard's table without those of the input, which stand after `url`. sha256: of the bytes as found."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ShardTask:
    """Everything that decides the bytes of one shard."""

    out: str
    shard_id: int
    pairs: Sequence[Pair]
    key_digits: int
    """Digits of a sample's place in its shard; the key is shard number and place."""
    resize: ResizeMode
    size: int | None
    extra_columns: Mapping[str, str]
    """Further columns of the input and their Arrow types."""
    plan: Mapping[str, Any]
    """Written into the stats: what another run must agree with to go on here."""


def make_shard(task: ShardTask) -> Row:
    """Write the four files of one shard and return its stats (see `shard_stats`)."""
    started = time.time()
    name = shard_name(task.shard_id)
    rows: list[Row] = []
    record = write_shard(task.out, name, _samples(task, rows))
    storage.write_bytes(storage.join(task.out, table_name(name)), _table(rows, task.extra_columns))
    stats = shard_stats(rows, record, task.plan, started, time.time())
    storage.write_json(storage.join(task.out, stats_name(name)), stats)
    return stats


def shard_stats(rows: Sequence[Row], record: ShardRecord, plan: Mapping[str, Any], started: float, ended: float) -> Row:
    """img2dataset's stats of a shard, and beside them the plan and the manifest's line. Times in seconds."""
    statuses = Counter(row["status"] for row in rows)
    return {
        "count": len(rows),
        "successes": statuses[SUCCESS],
        UNREADABLE: statuses[UNREADABLE],
        REFUSED: statuses[REFUSED],
        "without_caption": sum(row["status"] == SUCCESS and not row["caption"] for row in rows),
        "start_time": started,
        "end_time": ended,
        "duration": ended - started,
        "status_dict": dict(Counter(row["error_message"] or SUCCESS for row in rows)),
        "plan": dict(plan),
        "shard": asdict(record),
    }


def _samples(task: ShardTask, rows: list[Row]) -> Iterator[TarSample]:
    """The samples that turn out good; `rows` gets one line for every pair, good or not."""
    for place, pair in enumerate(task.pairs):
        key = f"{task.shard_id:05d}{place:0{task.key_digits}d}"
        row: Row = dict.fromkeys(OWN_COLUMNS) | {"url": pair.name, **pair.extra, "key": key}
        rows.append(row)
        sample = _read(task, pair, row)
        if sample is not None:
            yield sample


def _read(task: ShardTask, pair: Pair, row: Row) -> TarSample | None:
    """Fetch and prepare one pair and fill in its row; None when it fails, with the reason in the row."""
    try:
        row["caption"] = pair.read_caption()
        data = pair.read_picture()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        row.update(status=UNREADABLE, error_message=reason)
        return None
    row["sha256"] = hashlib.sha256(data).hexdigest()
    try:
        pixels = prepare(data, task.resize, task.size)
    except BadImage as error:
        row.update(status=REFUSED, error_message=str(error))
        return None
    row.update(status=SUCCESS, width=pixels.width, height=pixels.height)
    row.update(original_width=pixels.original_width, original_height=pixels.original_height)
    facts = json.dumps(row, indent=4, ensure_ascii=False, default=str).encode()
    return TarSample(row["key"], {pixels.extension: pixels.data, "txt": row["caption"].encode(), "json": facts})


def _table(rows: Sequence[Row], extra_columns: Mapping[str, str]) -> bytes:
    """The rows as a Parquet file: input columns first, then what became of each."""
    extra = {name: pa.type_for_alias(alias) for name, alias in extra_columns.items()}
    own = list(OWN_COLUMNS.items())
    schema = pa.schema([*own[:2], *extra.items(), *own[2:]])
    columns = {name: [_cell(row.get(name), schema.field(name).type) for row in rows] for name in schema.names}
    file = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), file)
    return file.getvalue()


def _cell(value: Any, kind: pa.DataType) -> Any:
    """A value that fits its column: what is not text goes into a text column as JSON."""
    if value is None or isinstance(value, str) or kind != pa.string():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)

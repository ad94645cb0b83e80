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

from data_tools.fetch import Outcome, read_ahead
from data_tools.pixels.header import BadImage
from data_tools.pixels.prepare import Extension, prepare
from data_tools.pixels.resize import ResizeMode
from data_tools.sidecars import DaliIndex
from data_tools.sources.pair import Pair
from data_tools.web import OptedOut, WebConfig
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
    "sample_sha256": pa.string(),
}
"""Columns of a shard's table without those of the input, which stand after `url`. sha256: of the picture as found, as
img2dataset has it; sample_sha256: of the sample as stored (`sample_digest`)."""

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
    extension: Extension
    """Of all pictures, so that all samples have the same members."""
    quality: int
    web: WebConfig
    extra_columns: Mapping[str, str]
    """Further columns of the input and their Arrow types."""
    plan: Mapping[str, Any]
    """Written into the stats: what another run must agree with to go on here."""


def make_shard(task: ShardTask) -> Row:
    """Write the five files of one shard and return its stats (see `shard_stats`).

    Raises:
        OSError: `task.out` cannot be written.
    """
    started = time.time()
    name = shard_name(task.shard_id)
    rows: list[Row] = []
    dali = DaliIndex()
    record = write_shard(task.out, name, dali.passing(_samples(task, rows)))
    dali.save(task.out, name)
    storage.write_bytes(storage.join(task.out, table_name(name)), table_bytes(rows, task.extra_columns))
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


def free_name(column: str) -> str:
    """The name of a further column: with `input_` before it where the shard's table needs the name itself."""
    return f"input_{column}" if column in OWN_COLUMNS else column


def sample_digest(members: Mapping[str, bytes]) -> str:
    """sha256 hex digest of a stored sample: its members by extension, each with its length."""
    digest = hashlib.sha256()
    for extension in sorted(members):
        digest.update(f"{extension} {len(members[extension])}\n".encode())
        digest.update(members[extension])
    return digest.hexdigest()


def _samples(task: ShardTask, rows: list[Row]) -> Iterator[TarSample]:
    """The samples that turn out good; `rows` gets one line for every pair, good or not."""
    for place, (pair, outcome) in enumerate(read_ahead(task.pairs, task.web)):
        key = f"{task.shard_id:05d}{place:0{task.key_digits}d}"
        row: Row = dict.fromkeys(OWN_COLUMNS) | {"caption": pair.caption, "url": pair.name, "key": key}
        row |= {free_name(name): value for name, value in pair.extra.items()}
        rows.append(row)
        sample = _read(task, outcome, row)
        if sample is not None:
            yield sample


def _read(task: ShardTask, outcome: Outcome, row: Row) -> TarSample | None:
    """Take what was found, prepare it, and fill in its row; None when it fails, with the reason in the row."""
    try:
        found = outcome()
    except (OSError, ValueError) as error:
        row.update(status=UNREADABLE, error_message=_reason(error))
        return None
    row.update({free_name(name): value for name, value in found.extra.items()})
    row.update(caption=found.caption, sha256=hashlib.sha256(found.picture).hexdigest())
    try:
        pixels = prepare(found.picture, task.resize, task.size, task.extension, task.quality)
    except BadImage as error:
        row.update(status=REFUSED, error_message=str(error))
        return None
    row.update(status=SUCCESS, width=pixels.width, height=pixels.height)
    row.update(original_width=pixels.original_width, original_height=pixels.original_height)
    stated = {name: value for name, value in row.items() if name != "sample_sha256"}
    facts = json.dumps(stated, indent=4, ensure_ascii=False, default=str).encode()
    members = {task.extension: pixels.data, "txt": row["caption"].encode(), "json": facts}
    row["sample_sha256"] = sample_digest(members)
    return TarSample(row["key"], members)


def _reason(error: Exception) -> str:
    """Why a pair could not be read, without its name where the kind of failure says enough."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error) if type(error) in (OSError, OptedOut) else f"{type(error).__name__}: {error}"


def table_bytes(rows: Sequence[Row], extra_columns: Mapping[str, str]) -> bytes:
    """The rows as a Parquet file: input columns first, then what became of each."""
    extra = {name: pa.type_for_alias(alias) for name, alias in extra_columns.items()}
    own = list(OWN_COLUMNS.items())
    schema = pa.schema([*own[:2], *extra.items(), *own[2:]])
    columns = {name: [_cell(row.get(name), schema.field(name).type) for row in rows] for name in schema.names}
    file = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), file)
    return file.getvalue()


def _cell(value: Any, kind: pa.DataType) -> Any:
    """A value that fits its column: what is not text goes into a text column as JSON, what is no number nowhere."""
    if value is None or pa.types.is_integer(kind):
        return value
    if kind == pa.bool_():
        return value if isinstance(value, bool) else None
    if kind == pa.float64():
        return float(value) if isinstance(value, int | float) else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

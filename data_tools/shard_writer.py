"""One shard from a list of pairs: tar, index, table, and last of all the stats file that says it is whole.

Runs in worker processes and depends on its task alone, so that any number of workers writes the same bytes. Keys, table
columns and stats are named as img2dataset names them. Called by `data_tools.shard`.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from data_tools.fetch import Outcome, read_ahead
from data_tools.kept import kept_samples
from data_tools.pixels.header import BadImage
from data_tools.pixels.prepare import Extension, prepare
from data_tools.pixels.resize import ResizeMode
from data_tools.sidecars import DaliIndex
from data_tools.sources.pair import Pair
from data_tools.table import (
    OWN_COLUMNS,
    REFUSED,
    SUCCESS,
    UNREADABLE,
    Row,
    free_name,
    row_of,
    sample_digest,
    table_bytes,
)
from data_tools.web import OptedOut, WebConfig
from pipeline import storage
from pipeline.data.shards import ShardRecord, shard_name, stats_name, table_name, write_shard
from pipeline.data.tar import TarSample


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
    keeps_samples: bool = False
    """The shard is there, and only its failed inputs are read."""


def make_shard(task: ShardTask) -> Row:
    """Write the five files of one shard and return its stats (see `shard_stats`).

    Raises:
        OSError: `task.out` cannot be written.
        UserError: the shard whose samples are to be kept is damaged.
    """
    started = time.time()
    name = shard_name(task.shard_id)
    rows: list[Row] = []
    dali = DaliIndex()
    with _kept(task, name) as kept:
        record = write_shard(task.out, name, dali.passing(_samples(task, kept, rows)))
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


def _kept(task: ShardTask, name: str) -> AbstractContextManager[Mapping[str, TarSample]]:
    return kept_samples(task.out, name) if task.keeps_samples else nullcontext({})


def _samples(task: ShardTask, kept: Mapping[str, TarSample], rows: list[Row]) -> Iterator[TarSample]:
    """The samples that are kept or turn out good; `rows` gets one line for every pair, good or not."""
    keys = [f"{task.shard_id:05d}{place:0{task.key_digits}d}" for place in range(len(task.pairs))]
    outcomes = read_ahead([pair for key, pair in zip(keys, task.pairs, strict=True) if key not in kept], task.web)
    for key, pair in zip(keys, task.pairs, strict=True):
        if key in kept:
            sample = kept[key]
            rows.append(row_of(sample))
            yield sample
            continue
        row: Row = dict.fromkeys(OWN_COLUMNS) | {"caption": pair.caption, "url": pair.name, "key": key}
        row |= {free_name(name): value for name, value in pair.extra.items()}
        rows.append(row)
        found = _read(task, next(outcomes)[1], row)
        if found is not None:
            yield found


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

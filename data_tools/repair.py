"""What is broken in a dataset, made whole again without what cannot be: that is kept in `quarantine/`.

Only shards with faults are written again. Bad samples leave their tar; of a tar that is broken the samples before the
break stay; indexes, table, stats and manifest follow. Called by `tessera-data validate --repair`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from mmap import mmap
from typing import Any

import numpy as np

from data_tools.check_shard import ShardCheck, offsets_of
from data_tools.shard_writer import shard_stats
from data_tools.sidecars import DaliIndex, dali_name, write_sidecars
from data_tools.table import REFUSED, SUCCESS, Row, row_of, table_bytes, table_rows
from data_tools.tars import SampleSpan, opened, sample_spans
from pipeline import storage
from pipeline.data.shards import (
    Manifest,
    ShardRecord,
    index_name,
    load_manifest,
    stats_name,
    table_name,
    write_index,
    write_shard,
)
from pipeline.data.tar import TarError, TarSample, parse_samples, write_samples

QUARANTINE = "quarantine"
"""Folder inside the dataset."""


def repair_dataset(url: str, checks: Sequence[ShardCheck]) -> Manifest:
    """Write again what `checks` found broken; the new manifest.

    Raises:
        UserError: no manifest, or the storage refuses.
    """
    manifest = load_manifest(url)
    records = [
        _repair_shard(url, record, check) if check.faults else record
        for record, check in zip(manifest.shards, checks, strict=True)
    ]
    repaired = replace(manifest, shards=tuple(record for record in records if record and record.num_samples))
    write_sidecars(url, repaired, next((check.extensions for check in checks if check.extensions), ()))
    repaired.save(url)
    return repaired


def _repair_shard(url: str, record: ShardRecord, check: ShardCheck) -> ShardRecord | None:
    """The new line of the manifest; None for a shard that is gone: its stats go too, so that it can be made again."""
    place = storage.join(url, record.name)
    if not storage.exists(place):
        storage.remove(storage.join(url, stats_name(record.name)))
        return None
    bad = {fault.place: fault.reason for fault in check.faults if fault.part == "sample"}
    with opened(place) as buffer:
        spans = list(_spans_before_break(buffer))
        good = [span for place, span in enumerate(spans) if place not in bad]
        if bad or any(fault.part == "tar" for fault in check.faults):
            _quarantine(url, record.name, check, buffer, [spans[place] for place in sorted(bad)])
            dali = DaliIndex()
            record = write_shard(url, record.name, dali.passing(_samples(buffer, good)))
            dali.save(url, record.name)
        else:
            _write_indexes(url, record.name, good)
        reasons = {spans[place].key: reason for place, reason in bad.items()}
        _write_facts(url, record, buffer, good, reasons)
    return record


def _spans_before_break(buffer: bytes | mmap) -> Iterator[SampleSpan]:
    try:
        yield from sample_spans(buffer)
    except TarError:
        return


def _samples(buffer: bytes | mmap, spans: Sequence[SampleSpan]) -> Iterator[TarSample]:
    for span in spans:
        yield parse_samples(buffer[slice(*span.span)])[0]


def _quarantine(url: str, shard: str, check: ShardCheck, buffer: bytes | mmap, bad: Sequence[SampleSpan]) -> None:
    """Keep the bad samples, or the whole tar where it is the tar that is broken; and say why."""
    place = storage.join(url, QUARANTINE, shard)
    with storage.writing(place) as file:
        if any(fault.part == "tar" for fault in check.faults):
            file.write(buffer)
        else:
            for span in bad:
                file.write(buffer[slice(*span.span)])
            write_samples(file, [])  # the end of the archive
    reasons = [{"key": fault.key, "reason": fault.reason} for fault in check.faults]
    storage.write_json(f"{place.removesuffix('.tar')}.json", reasons)


def _write_indexes(url: str, shard: str, spans: Sequence[SampleSpan]) -> None:
    write_index(storage.join(url, index_name(shard)), np.array(offsets_of(list(spans)), dtype=np.uint64))
    dali = DaliIndex()
    for span in spans:
        dali.add(span)
    if dali.is_valid:
        dali.save(url, shard)
    else:
        storage.remove(storage.join(url, dali_name(shard)))


def _write_facts(
    url: str, record: ShardRecord, buffer: bytes | mmap, good: Sequence[SampleSpan], reasons: Mapping[str, str]
) -> None:
    """Table and stats of a shard that has them, in agreement with its tar."""
    place = storage.join(url, stats_name(record.name))
    if not storage.exists(place):
        return
    stats: dict[str, Any] = storage.read_json(place)
    if "input" in stats["plan"]:  # latents have no table
        keys = {span.key for span in good}
        rows = table_rows(url, record.name) or []
        told = {row["key"] for row in rows}
        rows = [_row_after(row, keys, reasons) for row in rows]
        rows += [row_of(sample) for sample in _samples(buffer, [span for span in good if span.key not in told])]
        rows.sort(key=lambda row: row["key"])
        storage.write_bytes(
            storage.join(url, table_name(record.name)), table_bytes(rows, stats["plan"]["input"]["columns"])
        )
        stats = shard_stats(rows, record, stats["plan"], stats["start_time"], stats["end_time"])
    storage.write_json(place, stats | {"shard": asdict(record)})


def _row_after(row: Row, keys: set[str], reasons: Mapping[str, str]) -> Row:
    """A row of the table; one whose sample is no longer in the tar has failed."""
    if row["status"] != SUCCESS or row["key"] in keys:
        return row
    reason = f"quarantined: {reasons.get(row['key'], 'lost behind a break of the tar')}"
    return row | {"status": REFUSED, "error_message": reason, "sample_sha256": None}

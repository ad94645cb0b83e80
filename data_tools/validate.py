"""Every byte of a dataset against its manifest, every sample against what training needs.

The pictures go through the decoder that training uses, so what passes here is readable there. Called by
`tessera-data validate`.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from pyarrow import parquet

from data_tools.pool import map_unordered
from data_tools.shard_writer import SUCCESS
from data_tools.tars import opened, picture_of, sample_keys
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.shards import Kind, ShardRecord, index_name, load_manifest, read_index, table_name
from pipeline.data.tar import Buffer, TarError, TarSample, parse_samples, sample_offsets

LATENT = "npy"
"""As in `pipeline.data.latents`, which would bring torch into every worker."""


@dataclass(frozen=True)
class CheckTask:
    """One shard to check."""

    url: str
    record: ShardRecord
    kind: Kind


@dataclass
class ShardCheck:
    """What was found in one shard."""

    name: str
    num_samples: int = 0
    num_without_caption: int = 0
    problems: list[str] = field(default_factory=list)
    key_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """uint64, one for each sample, to find keys that come twice in the dataset."""


def validate_dataset(url: str, num_workers: int) -> list[ShardCheck]:
    """Check all shards of the dataset `url`, in the order of the manifest.

    Raises:
        UserError: no manifest.
    """
    manifest = load_manifest(url)
    tasks = [CheckTask(url, record, manifest.kind) for record in manifest.shards]
    checks = {check.name: check for check in map_unordered(check_shard, tasks, num_workers, f"checking {url}")}
    ordered = [checks[record.name] for record in manifest.shards]
    _find_repeated_keys(ordered)
    return ordered


def check_shard(task: CheckTask) -> ShardCheck:
    """All checks of one shard; problems are found, not raised."""
    check = ShardCheck(task.record.name)
    try:
        with opened(storage.join(task.url, task.record.name)) as buffer:
            check.problems += _file_problems(task, buffer)
            keys = sample_keys(buffer)
            check.problems += _table_problems(task, keys)
            check.key_hashes = np.array([_hash(key) for key in keys], dtype=np.uint64)
            _check_samples(task, buffer, check)
    except FileNotFoundError:
        check.problems.append("the manifest names it, but it is not there")
    except (TarError, UserError) as error:
        check.problems.append(str(error))
    return check


def _file_problems(task: CheckTask, buffer: Buffer) -> Iterator[str]:
    """Size, hash and index of the tar against the manifest."""
    record = task.record
    if len(buffer) != record.num_bytes:
        yield f"{len(buffer)} bytes, the manifest says {record.num_bytes}"
    elif hashlib.sha256(buffer).hexdigest() != record.sha256:
        yield "other bytes than those the manifest was made of (sha256 differs)"
    offsets = sample_offsets(buffer)
    if len(offsets) - 1 != record.num_samples:
        yield f"{len(offsets) - 1} samples, the manifest says {record.num_samples}"
    if not np.array_equal(read_index(storage.join(task.url, index_name(record.name))), offsets):
        yield f"{index_name(record.name)} does not fit the tar; write it again with `tessera-data index {task.url}`"


def _table_problems(task: CheckTask, keys: list[str]) -> Iterator[str]:
    """The rows that succeeded are the samples of the tar; a shard of foreign origin has no table."""
    place = storage.join(task.url, table_name(task.record.name))
    if not storage.exists(place):
        return
    table = parquet.read_table(io.BytesIO(storage.read_bytes(place)), columns=["key", "status"])
    rows = table.to_pylist()
    if [row["key"] for row in rows if row["status"] == SUCCESS] != keys:
        yield f"{table_name(task.record.name)} lists other samples than the tar holds"


def _check_samples(task: CheckTask, buffer: Buffer, check: ShardCheck) -> None:
    """Look into each sample; one at a time, so that a large shard needs little memory."""
    offsets = sample_offsets(buffer)
    check_one = _picture_problem if task.kind == "images" else _latent_problem
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for sample in parse_samples(buffer[start:stop]):
            check.num_samples += 1
            problem = check_one(sample) or _caption_problem(sample)
            if problem:
                check.problems.append(f"{sample.key}: {problem}")
            check.num_without_caption += not sample.members.get("txt", b"").strip()


def _picture_problem(sample: TarSample) -> str | None:
    data = picture_of(sample)
    if data is None:
        return f"no picture among {', '.join(sorted(sample.members))}"
    try:
        decode_image(data)
    except DecodeError as error:
        return str(error)
    return None


def _latent_problem(sample: TarSample) -> str | None:
    if LATENT not in sample.members:
        return f"no {LATENT} among {', '.join(sorted(sample.members))}"
    try:
        latent = np.load(io.BytesIO(sample.members[LATENT]), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        return f"latent that does not load: {error}"
    return None if np.isfinite(latent).all() else "latent with numbers that are not finite"


def _caption_problem(sample: TarSample) -> str | None:
    try:
        sample.members.get("txt", b"").decode("utf-8")
    except UnicodeDecodeError:
        return "caption that is not UTF-8"
    return None


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _find_repeated_keys(checks: list[ShardCheck]) -> None:
    """Note in each shard how many of its keys came already, in this shard or one before it."""
    seen = np.empty(0, np.uint64)
    for check in checks:
        own = np.unique(check.key_hashes)
        repeated = len(check.key_hashes) - len(own) + int(np.isin(own, seen).sum())
        if repeated:
            check.problems.append(f"{repeated} keys that came before; keys must be unique in a dataset")
        seen = np.concatenate([seen, own])

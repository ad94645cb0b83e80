"""One shard against its manifest line, its index, its table, and what training needs of each sample.

The pictures go through the decoder that training uses, so what passes here is readable there. Faults are found, not
raised, and each says where it is. Called by `data_tools.validate`, in worker processes, and by the repair.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Literal

import numpy as np

from data_tools.index import HEADERS_PREFIX, headers_digest
from data_tools.sidecars import DaliIndex, dali_name
from data_tools.table import SUCCESS, sample_digest, table_rows
from data_tools.tars import SampleSpan, opened, picture_of, sample_spans
from pipeline import storage
from pipeline.config import UserError
from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.shards import Kind, ShardRecord, index_name, read_index, table_name
from pipeline.data.tar import TarError, TarSample, parse_samples

LATENT = "npy"
"""As in `pipeline.data.latents`, which would bring torch into every worker."""

Part = Literal["tar", "index", "table", "sample"]


@dataclass(frozen=True)
class CheckTask:
    """One shard to check."""

    url: str
    record: ShardRecord
    kind: Kind


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    part: Part
    reason: str
    key: str = ""
    """Of the sample."""
    place: int = -1
    """Number of the sample in its shard."""

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.key else self.reason


@dataclass
class ShardCheck:
    """What was found in one shard."""

    name: str
    num_samples: int = 0
    num_without_caption: int = 0
    faults: list[Fault] = field(default_factory=list)
    extensions: tuple[str, ...] = ()
    """Members of the first sample, sorted."""
    key_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    """uint64, one for each sample, to find keys that come twice in the dataset."""


def check_shard(task: CheckTask) -> ShardCheck:
    """All checks of one shard."""
    check = ShardCheck(task.record.name)
    try:
        with opened(storage.join(task.url, task.record.name)) as buffer:
            spans = list(_whole_spans(buffer, check))
            check.faults += _file_faults(task.record, buffer)
            check.faults += _index_faults(task, buffer, spans)
            hashes = _table_hashes(task, spans, check)
            check.key_hashes = np.array([_hash(span.key) for span in spans], dtype=np.uint64)
            _check_samples(task, buffer, spans, hashes, check)
    except FileNotFoundError:
        check.faults.append(Fault("tar", "the manifest names it, but it is not there"))
    return check


def _whole_spans(buffer: bytes | mmap, check: ShardCheck) -> Iterator[SampleSpan]:
    """The samples up to the first break."""
    last = "the start"
    try:
        for span in sample_spans(buffer):
            yield span
            last = span.key
    except TarError as error:
        check.faults.append(Fault("tar", f"broken after {last}: {error}"))


def _file_faults(record: ShardRecord, buffer: bytes | mmap) -> Iterator[Fault]:
    """Size and hash of the tar."""
    if len(buffer) != record.num_bytes:
        yield Fault("tar", f"{len(buffer)} bytes, the manifest says {record.num_bytes}")
        return
    foreign = record.sha256.startswith(HEADERS_PREFIX)
    try:
        found = headers_digest(buffer) if foreign else hashlib.sha256(buffer).hexdigest()
    except TarError:
        return  # told already
    if found != record.sha256:
        what = "headers" if foreign else "bytes"
        yield Fault("tar", f"other {what} than those the manifest was made of (sha256 differs)")


def _index_faults(task: CheckTask, buffer: bytes | mmap, spans: list[SampleSpan]) -> Iterator[Fault]:
    """Number of samples, and the indexes beside the tar."""
    record = task.record
    if len(spans) != record.num_samples:
        yield Fault("tar", f"{len(spans)} samples, the manifest says {record.num_samples}")
    remedy = "write it again with `tessera-data validate --repair`"
    try:
        if read_index(storage.join(task.url, index_name(record.name))).tolist() != offsets_of(spans):
            yield Fault("index", f"{index_name(record.name)} does not fit the tar; {remedy}")
    except UserError:
        yield Fault("index", f"{index_name(record.name)} is not there, or no index; {remedy}")
    place = storage.join(task.url, dali_name(record.name))
    dali = DaliIndex()
    for span in spans:
        dali.add(span)
    if storage.exists(place) and storage.read_bytes(place) != dali.text().encode():
        yield Fault("index", f"{dali_name(record.name)} does not fit the tar; {remedy}")


def offsets_of(spans: list[SampleSpan]) -> list[int]:
    """The words of a `.tar.idx`."""
    return [*(span.span[0] for span in spans), spans[-1].span[1] if spans else 0]


def _table_hashes(task: CheckTask, spans: list[SampleSpan], check: ShardCheck) -> Mapping[str, str]:
    """Key -> digest of the sample, where the shard has a table that says it; foreign shards have none."""
    rows = table_rows(task.url, task.record.name, ["key", "status", "sample_sha256"])
    if rows is None:
        return {}
    good = [row for row in rows if row["status"] == SUCCESS]
    if [row["key"] for row in good] != [span.key for span in spans]:
        check.faults.append(Fault("table", f"{table_name(task.record.name)} lists other samples than the tar holds"))
    return {row["key"]: row["sample_sha256"] for row in good if row.get("sample_sha256")}


def _check_samples(
    task: CheckTask, buffer: bytes | mmap, spans: list[SampleSpan], hashes: Mapping[str, str], check: ShardCheck
) -> None:
    """Look into each sample; one at a time, so that a large shard needs little memory."""
    check.extensions = tuple(sorted(spans[0].extensions)) if spans else ()
    for place, span in enumerate(spans):
        try:
            sample = parse_samples(buffer[slice(*span.span)])[0]
        except TarError as error:
            check.faults.append(Fault("sample", str(error), span.key, place))
            continue
        check.num_samples += 1
        check.num_without_caption += not sample.members.get("txt", b"").strip()
        reason = sample_fault(sample, task.kind, hashes.get(span.key)) or _members_fault(sample, check.extensions)
        if reason:
            check.faults.append(Fault("sample", reason, span.key, place))


def sample_fault(sample: TarSample, kind: Kind, digest: str | None) -> str | None:
    """What is wrong with a sample, if anything."""
    own = _picture_fault(sample) if kind == "images" else _latent_fault(sample)
    if own:
        return own
    try:
        sample.members.get("txt", b"").decode("utf-8")
    except UnicodeDecodeError:
        return "caption that is not UTF-8"
    if digest and digest != sample_digest(sample.members):
        return "other bytes than those that were written (sha256 differs)"
    return None


def _members_fault(sample: TarSample, wanted: tuple[str, ...]) -> str | None:
    found = tuple(sorted(sample.members))
    return None if found == wanted else f"members {', '.join(found)}, the first sample has {', '.join(wanted)}"


def _picture_fault(sample: TarSample) -> str | None:
    data = picture_of(sample)
    if data is None:
        return f"no picture among {', '.join(sorted(sample.members))}"
    try:
        decode_image(data)
    except DecodeError as error:
        return str(error)
    return None


def _latent_fault(sample: TarSample) -> str | None:
    if LATENT not in sample.members:
        return f"no {LATENT} among {', '.join(sorted(sample.members))}"
    try:
        latent = np.load(io.BytesIO(sample.members[LATENT]), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        return f"latent that does not load: {error}"
    return None if np.isfinite(latent).all() else "latent with numbers that are not finite"


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")

"""Tar bytes: read samples out of a run of members, find where samples start, write samples in one canonical form.

Reads USTAR, PAX and GNU long names from any buffer (bytes, memoryview, mmap), so a block fetched by a ranged read needs
no file object. Writes USTAR with fixed time, owner and mode: the same samples give the same bytes. Members are grouped
as WebDataset does: the key is the path up to the first dot of its last component. Called by the loader and
`data_tools`.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
_META_NAME = re.compile(r"__[^/]*__($|/)")


class Buffer(Protocol):
    """Bytes that are sliced: in memory, mapped, or fetched as they are asked for."""

    def __len__(self) -> int:
        """Number of bytes."""
        ...

    def __getitem__(self, place: slice, /) -> bytes | bytearray | memoryview:
        """The bytes of a slice without a step."""
        ...


class Sink(Protocol):
    """What a tar is written into: a binary file, or something that passes the bytes on to one."""

    def write(self, data: bytes, /) -> int:
        """As of a binary file."""
        ...


class TarError(ValueError):
    """The bytes are not a whole, valid run of tar members; the message names the offset."""


@dataclass(frozen=True)
class TarSample:
    """The adjacent members of one key; `members` maps an extension such as `jpg` or `seg.png` to its bytes."""

    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class TarMember:
    """Where one regular file lies in the buffer: `offset` of its first header, `start` and `size` of its bytes."""

    name: str
    offset: int
    start: int
    size: int


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member path; None for metadata (`__x__`) and for names without a dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or _META_NAME.match(name):
        return None
    return folder + slash + stem, extension.lower()


def iter_members(buffer: Buffer, offset: int = 0) -> Iterator[TarMember]:
    """Every regular file from `offset` to the end-of-archive block or the end of the buffer, headers only.

    Raises:
        TarError: broken checksum, or a member that runs past the end of the buffer.
    """
    first, long_name, long_size = offset, None, None
    while offset < len(buffer):
        header = bytes(buffer[offset : offset + BLOCK])
        if not header.strip(b"\0"):
            return
        kind, size = _check_header(header, offset)
        start = offset + BLOCK
        if kind in b"xL":  # a PAX or GNU header that speaks about the next member
            payload = bytes(buffer[start : start + size])
            if kind == b"L":
                long_name = payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                pax = _pax_records(payload)
                long_name, long_size = pax.get("path", long_name), pax.get("size")
            offset = start + padded(size)
            continue
        size = int(long_size) if long_size is not None else size
        if start + size > len(buffer):
            raise TarError(f"offset {offset}: member of {size} bytes is cut off after {len(buffer) - start}")
        if kind in b"0\0":
            yield TarMember(long_name or _ustar_name(header), first, start, size)
        offset = start + padded(size)
        first, long_name, long_size = offset, None, None


def parse_samples(buffer: Buffer) -> list[TarSample]:
    """All samples of a run of whole members, in order.

    Raises:
        TarError: see `iter_members`; also one key with the same extension twice.
    """
    samples: list[TarSample] = []
    for member in iter_members(buffer):
        parts = split_name(member.name)
        if parts is None:
            continue
        key, extension = parts
        if not samples or samples[-1].key != key:
            samples.append(TarSample(key, {}))
        if extension in samples[-1].members:
            raise TarError(f"offset {member.offset}: {member.name} twice in one sample")
        samples[-1].members[extension] = bytes(buffer[member.start : member.start + member.size])
    return samples


def metadata_of(sample: TarSample) -> bytes:
    """The `json` member as it is stored, an empty object where there is none."""
    return sample.members.get("json", b"{}")


def caption_of(sample: TarSample) -> str:
    """The caption: the `txt` member, else `caption` of the `json` member, else nothing."""
    if "txt" in sample.members:
        return sample.members["txt"].decode("utf-8", "replace").strip()
    try:
        fields = json.loads(metadata_of(sample))
    except ValueError:
        return ""
    return str(fields.get("caption") or "") if isinstance(fields, dict) else ""


def sample_offsets(buffer: Buffer) -> np.ndarray:
    """uint64 [n + 1] for `shards.write_index`: first header of each sample, then the end of the last member."""
    offsets, end, last_key = [], 0, None
    for member in iter_members(buffer):
        parts = split_name(member.name)
        end = member.start + padded(member.size)
        if parts is not None and parts[0] != last_key:
            offsets.append(member.offset)
            last_key = parts[0]
    return np.array([*offsets, end], dtype=np.uint64)


def write_samples(file: Sink, samples: Iterable[TarSample]) -> np.ndarray:
    """Write a whole tar: USTAR, members in sorted order of extension, time 0, owner 0, mode 0644.

    Returns:
        The uint64 [n + 1] offsets for `shards.write_index`.

    Raises:
        ValueError: a key that readers would split elsewhere (a dot or nothing in its last component, a
            folder named `__meta__`), or a name too long for USTAR (about 255 bytes).
    """
    offsets, position = [], 0
    for sample in samples:
        offsets.append(position)
        for extension in sorted(sample.members):
            position += _write_member(file, sample.key, extension, sample.members[extension])
    file.write(END_OF_ARCHIVE)
    return np.array([*offsets, position], dtype=np.uint64)


def _write_member(file: Sink, key: str, extension: str, data: bytes) -> int:
    """Write header, bytes and padding of one member; the number of bytes written."""
    name = f"{key}.{extension}"
    if split_name(name) != (key, extension) or not key.rpartition("/")[2]:
        raise ValueError(f"{name!r}: readers would not find the key {key!r} in this name")
    padding = bytes(-len(data) % BLOCK)
    return file.write(_header(name, len(data))) + file.write(data) + file.write(padding)


def _header(name: str, size: int) -> bytes:
    """As `tarfile` writes it for USTAR, which takes five times as long for a usual name."""
    stored = name.encode()
    if len(stored) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    front = stored.ljust(100, b"\0") + b"0000644\x000000000\x000000000\0%011o\x0000000000000\0" % size
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    checksum = sum(front) + 8 * 32 + sum(rest)
    return front + b"%06o\0 " % checksum + rest


def _check_header(header: bytes, offset: int) -> tuple[bytes, int]:
    """(type flag, size in bytes) of a header whose checksum holds."""
    try:
        stated = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        raise TarError(f"offset {offset}: not a tar header") from None
    if len(header) < BLOCK or stated != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TarError(f"offset {offset}: tar header with a wrong checksum")
    return header[156:157], size


def _number(field: bytes) -> int:
    """An octal field, or the base-256 form that GNU tar uses from 8 GiB on."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b"\0 ") or b"0", 8)


def _ustar_name(header: bytes) -> str:
    """Prefix and name of a USTAR header; the old and GNU formats have no prefix."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_records(payload: bytes) -> dict[str, str]:
    """The `length key=value\\n` records of a PAX header."""
    records: dict[str, str] = {}
    while payload:
        length, _, _ = payload.partition(b" ")
        record, payload = payload[: int(length)], payload[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        records[key.decode("utf-8")] = value.decode("utf-8", "surrogateescape")
    return records


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK

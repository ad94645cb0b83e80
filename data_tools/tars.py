"""Whole tars at rest, as buffers: all of their bytes, or the headers alone.

Called by `validate`, `index`, `report`, the repair and the source of tars, in worker processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap

from pipeline import storage
from pipeline.data.tar import Buffer, TarError, TarMember, TarSample, iter_members, padded, split_name
from pipeline.retry import patiently

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions of members that are pictures."""

SMALLEST_READ, LARGEST_READ = 1 << 13, 1 << 20
"""Bytes of one ranged read of headers: the smaller, the longer the bodies between them."""


@contextmanager
def opened(url: str) -> Iterator[bytes | mmap]:
    """The bytes of a tar: mapped when it is local, fetched when it is not.

    Raises:
        OSError: not there, or not readable.
    """
    path = storage.local_path(url)
    if not storage.is_local(url) or path.stat().st_size == 0:  # an empty file cannot be mapped
        yield storage.read_bytes(url)
        return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        yield mapped


@contextmanager
def headers_of(url: str) -> Iterator[Buffer]:
    """A tar whose headers are wanted alone: mapped when it is local, else fetched piece by piece on the way.

    Raises:
        OSError: not there, or not readable.
    """
    if storage.is_local(url):
        with opened(url) as buffer:
            yield buffer
    else:
        yield RangedBuffer(url)


class RangedBuffer:
    """A remote file that is read from front to back in ranged reads, where it is sliced and little more.

    A slice next to the last read makes the next read longer, one far behind it makes it shorter: small bodies are read
    through in few requests, large ones are jumped over.
    """

    def __init__(self, url: str) -> None:
        self._fs, self._path = storage.filesystem(url)
        self._num_bytes = int(patiently(lambda: self._fs.info(self._path))["size"])
        self._start, self._data, self._step = 0, b"", SMALLEST_READ
        self.num_fetched = 0
        """Bytes that were fetched."""

    def __len__(self) -> int:
        return self._num_bytes

    def __getitem__(self, place: slice, /) -> bytes:
        start, stop, _ = place.indices(self._num_bytes)
        if start < self._start or stop > self._start + len(self._data):
            self._fetch(start, stop)
        return self._data[start - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> None:
        gap = start - (self._start + len(self._data))
        self._step = min(2 * self._step, LARGEST_READ) if gap < self._step else max(self._step // 2, SMALLEST_READ)
        end = min(max(stop, start + self._step), self._num_bytes)
        self._data = patiently(lambda: bytes(self._fs.cat_file(self._path, start=start, end=end)))
        self._start = start
        self.num_fetched += len(self._data)


@dataclass(frozen=True)
class SampleSpan:
    """Where one sample lies in a tar."""

    key: str
    extensions: tuple[str, ...]
    span: tuple[int, int]
    """From its first header to the end of its last member's padding."""
    members: tuple[TarMember, ...]


def sample_spans(buffer: Buffer) -> Iterator[SampleSpan]:
    """Every run of adjacent members of one key, headers only; before a break the last one may lack members.

    Raises:
        TarError: the tar is broken.
    """
    key, extensions, members = "", list[str](), list[TarMember]()
    try:
        for member in iter_members(buffer):
            parts = split_name(member.name)
            if parts is None:
                continue
            if parts[0] != key and members:
                yield _span(key, extensions, members)
                extensions, members = [], []
            key = parts[0]
            extensions.append(parts[1])
            members.append(member)
    except TarError:
        if members:
            yield _span(key, extensions, members)
        raise
    if members:
        yield _span(key, extensions, members)


def _span(key: str, extensions: list[str], members: list[TarMember]) -> SampleSpan:
    span = (members[0].offset, members[-1].start + padded(members[-1].size))
    return SampleSpan(key, tuple(extensions), span, tuple(members))


def sample_keys(buffer: Buffer) -> list[str]:
    """The keys of all samples in order, one for each run of adjacent members; headers only.

    Raises:
        TarError: the tar is broken.
    """
    return [sample.key for sample in sample_spans(buffer)]


def picture_of(sample: TarSample) -> bytes | None:
    """The bytes of the picture in a sample; None when it has none."""
    return next((sample.members[extension] for extension in PICTURES if extension in sample.members), None)

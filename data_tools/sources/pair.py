"""One picture and its caption, listed but not read: what every source yields and every shard writer reads.

Called by the sources, by the list of pairs between them and the writers, and by the shard writers.
"""

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.data.tar import TarSample, caption_of, metadata_of, parse_samples

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LOSSLESS_ENDINGS = (".png", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_COLUMNS = ("caption", "text", "txt", "prompt", "top_caption", "alt_text", "alt", "captions")
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}

Span = tuple[int, int]
"""First byte, and the byte after the last."""


class Cell(NamedTuple):
    """One cell of a Parquet file."""

    column: str
    """With its dots where the bytes are a field of a struct."""
    group: int
    """Number of the row group in the file."""
    row: int
    """In the group."""


Fetch = Callable[[str, Span | Cell | None], bytes]
"""URL and place in it (None: all of it) -> bytes; raises OSError."""


@dataclass(frozen=True)
class Found:
    """What a pair turned out to hold."""

    picture: bytes
    caption: str
    extra: Mapping[str, Any]
    """Further columns."""


@dataclass(frozen=True)
class Pair:
    """One picture and its caption, not read yet."""

    name: str
    """The picture's path as the source says it: relative to a folder, verbatim from a table."""
    picture: str
    """Path or URL to fetch the picture from."""
    span: Span | None = None
    """Where it lies in that file; None for the whole file."""
    cell: Cell | None = None
    """Where it lies in that file when the file is a Parquet table with pictures inside."""
    in_tar: bool = False
    """The span holds the members of a WebDataset sample: picture, caption and metadata."""
    caption: str | None = None
    """The caption where the source knows it."""
    caption_file: str | None = None
    """Path or URL of a .txt, or of a .json with a caption in it, where the source has only that."""
    num_bytes: int | None = None
    """Size of the picture and its caption file, or of the row group around it, where a listing shows it: part of the
    fingerprint of the inputs."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, kept in the sample's JSON and in the shard's table."""

    def read_caption(self, fetch: Fetch) -> str:
        """The caption, fetched if need be; empty when there is none.

        Raises:
            ValueError: not UTF-8, or a JSON file without a caption in it.
            OSError: not readable.
        """
        if self.caption is not None or self.caption_file is None:
            return self.caption or ""
        text = fetch(self.caption_file, None).decode("utf-8-sig")
        if not self.caption_file.endswith(".json"):
            return text.strip()
        fields = json.loads(text)
        name = first_of(CAPTION_COLUMNS, fields) if isinstance(fields, dict) else None
        if name is None:
            raise ValueError(f"no field {' or '.join(CAPTION_COLUMNS)} in {self.caption_file}")
        return str(fields[name]).strip()

    def read(self, fetch: Fetch) -> Found:
        """Picture, caption and further columns.

        Raises:
            ValueError: as `read_caption`; also a tar that is broken in this place.
            OSError: not readable.
        """
        if self.in_tar:
            return _unpacked(parse_samples(fetch(self.picture, self.span))[0], self.extra)
        return Found(fetch(self.picture, self.cell or self.span), self.read_caption(fetch), self.extra)


class Source(ABC):
    """A kind of input."""

    @abstractmethod
    def pairs(self) -> Iterator[Pair]:
        """All pairs, in an order that depends on the input alone, one at a time: an input may be larger than memory."""

    def late_columns(self) -> Mapping[str, str]:
        """Arrow types of the further columns whose values come to light only when a pair is read."""
        return {}


def first_of(names: Iterable[str], row: Iterable[str]) -> str | None:
    """The column of `row` that bears the first of `names`, in whatever case."""
    there = {column.lower(): column for column in reversed(list(row))}
    return next((there[name] for name in names if name in there), None)


def no_column(wanted: str, there: Iterable[str]) -> str:
    """What to tell a user who names a column that is not there."""
    names = [str(name) for name in there]
    near = difflib.get_close_matches(wanted, names, n=1)
    return f"no column {wanted}" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}")


def text_of(caption: Any) -> str:
    """A caption as a table holds it; of several the first, of none the empty text."""
    first = next(iter(caption), None) if isinstance(caption, list) else caption
    return "" if first is None else str(first)


def ending_of(picture: bytes) -> str:
    """The usual ending of a file that begins so; `bin` for what is not known."""
    return next((ending for magic, ending in MAGIC.items() if picture.startswith(magic)), "bin")


def _unpacked(sample: TarSample, columns: Mapping[str, Any]) -> Found:
    """Picture, caption and those of `columns` that the sample's metadata fills."""
    picture = next(data for end, data in sample.members.items() if f".{end}" in PICTURE_ENDINGS)
    try:
        fields = json.loads(metadata_of(sample))
    except ValueError:
        fields = {}
    extra = {name: fields.get(name) for name in columns} if isinstance(fields, dict) else dict(columns)
    return Found(picture, caption_of(sample), extra)

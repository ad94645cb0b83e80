"""Where pairs of picture and caption come from: a folder, or a table. One class for each kind of input.

A source lists its pairs without opening a picture; the shard writers fetch them. Paths and fsspec URLs alike. To add a
kind, write a class with `from_url` and `pairs`, and name it in `open_source`. Called by `data_tools.shard`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline import storage
from pipeline.config import UserError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_ENDINGS = (".txt", ".json")
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
PATH_COLUMNS = ("path", "image", "image_path", "file_name", "filename", "file", "url")
CAPTION_COLUMNS = ("caption", "text", "txt", "prompt")


@dataclass(frozen=True)
class Pair:
    """One picture and its caption, not read yet."""

    name: str
    """The picture's path as the source says it: relative to a folder, verbatim from a table."""
    picture: str
    """Path or URL to fetch the picture from."""
    caption: str | None = None
    """The caption where the source knows it."""
    caption_file: str | None = None
    """Path or URL of a .txt, or of a .json with a caption in it, where the source has only that."""
    num_bytes: int | None = None
    """Size of the picture and its caption file where a listing shows it: part of the fingerprint of the inputs."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, kept in the sample's JSON and in the shard's table."""

    def read_caption(self) -> str:
        """The caption, fetched if need be; empty when there is none.

        Raises:
            ValueError: not UTF-8, or a JSON file without a caption in it.
            OSError: not readable.
        """
        if self.caption is not None or self.caption_file is None:
            return self.caption or ""
        text = _fetch(self.caption_file).decode("utf-8-sig")
        if not self.caption_file.endswith(".json"):
            return text.strip()
        fields = json.loads(text)
        name = _first_of(CAPTION_COLUMNS, fields) if isinstance(fields, dict) else None
        if name is None:
            raise ValueError(f"no field {' or '.join(CAPTION_COLUMNS)} in {self.caption_file}")
        return str(fields[name]).strip()

    def read_picture(self) -> bytes:
        """The picture's file as it is.

        Raises:
            OSError: not readable.
        """
        return _fetch(self.picture)


class Source(Protocol):
    """A kind of input."""

    def pairs(self) -> Iterator[Pair]:
        """All pairs, in an order that depends on the input alone."""


def open_source(url: str) -> Source:
    """The source that fits `url`: a table by its ending, else a folder.

    Raises:
        UserError: nothing there, or a file of no known kind.
    """
    if url.lower().endswith(TABLE_ENDINGS):
        if not storage.exists(url):
            raise UserError(f"{url}: no such file")
        return TableSource(url)
    fs, path = storage.filesystem(url)
    if not fs.exists(path):
        raise UserError(f"{url}: no such folder")
    if not fs.isdir(path):
        raise UserError(f"{url}: not a folder and not one of {', '.join(TABLE_ENDINGS)}")
    return FolderSource(url)


@dataclass(frozen=True)
class FolderSource:
    """Every picture of a folder tree, with the caption in the file of the same name that ends in .txt or .json."""

    url: str

    def pairs(self) -> Iterator[Pair]:
        """In order of relative path; hidden files and folders are passed over."""
        fs, root = storage.filesystem(self.url)
        root = root.rstrip("/")
        sizes = {path[len(root) + 1 :]: info["size"] for path, info in fs.find(root, detail=True).items()}
        visible = {name for name in sizes if not any(part.startswith(".") for part in name.split("/"))}
        for name in sorted(visible):
            stem, dot, ending = name.rpartition(".")
            if (dot + ending).lower() in PICTURE_ENDINGS:
                caption = next((stem + end for end in CAPTION_ENDINGS if stem + end in visible), None)
                caption_file = storage.join(self.url, caption) if caption else None
                num_bytes = sizes[name] + (sizes[caption] if caption else 0)
                yield Pair(name, storage.join(self.url, name), None, caption_file, num_bytes)


@dataclass(frozen=True)
class TableSource:
    """The rows of a .csv, .tsv, .jsonl or .parquet file; relative paths start at the table's own folder."""

    url: str

    def pairs(self) -> Iterator[Pair]:
        """In order of rows.

        Raises:
            UserError: no column for the path or the caption, or a row without a path.
        """
        folder = self.url.rpartition("/")[0] or "."
        for number, row in enumerate(self._rows()):
            path, caption = _first_of(PATH_COLUMNS, row), _first_of(CAPTION_COLUMNS, row)
            for column, wanted in ((path, PATH_COLUMNS), (caption, CAPTION_COLUMNS)):
                if column is None:
                    raise UserError(f"{self.url}: no column named {', '.join(wanted[:-1])} or {wanted[-1]}")
            assert path is not None and caption is not None
            if not row[path]:
                raise UserError(f"{self.url}: row {number} has no {path}")
            name = str(row[path])
            picture = name if "://" in name or name.startswith("/") else storage.join(folder, name)
            extra = {key: value for key, value in row.items() if key not in (path, caption)}
            yield Pair(name, picture, str(row[caption] or ""), extra=extra)

    def _rows(self) -> Iterable[Mapping[str, Any]]:
        data = storage.read_bytes(self.url)
        ending = self.url.lower().rpartition(".")[2]
        try:
            if ending == "parquet":
                from pyarrow import parquet

                return list(parquet.read_table(io.BytesIO(data)).to_pylist())
            text = data.decode("utf-8-sig")
            if ending == "jsonl":
                return [json.loads(line) for line in text.splitlines() if line.strip()]
            return csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if ending == "tsv" else ",")
        except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
            raise UserError(f"{self.url}: not a readable .{ending} file: {' '.join(str(error).split())}") from None


def _fetch(url: str) -> bytes:
    """The whole file; a local one without the detour through fsspec, which costs more than reading a small picture."""
    return storage.local_path(url).read_bytes() if storage.is_local(url) else storage.read_bytes(url)


def _first_of(names: Iterable[str], row: Mapping[str, Any]) -> str | None:
    """The first of `names` that `row` has."""
    return next((name for name in names if name in row), None)

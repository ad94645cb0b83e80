"""Tables with a column for the picture's path or URL and one for its caption, and plain lists of URLs.

CSV, TSV, JSON lines, JSON and Parquet, one file or many, gzipped or not, read row by row. Called by `open_source`.
"""

import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from data_tools.sources.pair import CAPTION_COLUMNS, Pair, Source, first_of, no_column, text_of
from data_tools.sources.parquet import holds_bytes
from pipeline import storage
from pipeline.config import UserError

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
PATH_COLUMNS = ("path", "image", "image_path", "file_name", "filename", "file", "url", "image_url", "img_url", "link")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TableSource(Source):
    """The rows of tables one after the other; relative paths start at a table's own folder."""

    urls: tuple[str, ...]
    picture_column: str | None = None
    """None: the first of `PATH_COLUMNS`."""
    caption_column: str | None = None
    """None: the first of `CAPTION_COLUMNS`."""

    def pairs(self) -> Iterator[Pair]:
        """In order of tables and rows.

        Raises:
            UserError: no column for the path or the caption, or a row without a path.
        """
        for url in self.urls:
            folder = url.rpartition("/")[0] or "."
            for number, row in enumerate(rows_of(url)):
                yield self._pair(url, folder, number, row)

    def _pair(self, url: str, folder: str, number: int, row: Mapping[str, Any]) -> Pair:
        if None in row:
            raise UserError(f"{url}: row {number} has more fields than the first line names")
        path = _column(url, row, self.picture_column, PATH_COLUMNS)
        is_list = _ending(url) == "txt"
        caption = None if is_list else _column(url, row, self.caption_column, CAPTION_COLUMNS)
        name = row[path]
        if not name:
            raise UserError(f"{url}: row {number} has no {path}")
        if not isinstance(name, str):
            raise UserError(f"{url}: row {number}: {path} holds no path or URL, but a {type(name).__name__}")
        picture = name if "://" in name or name.startswith("/") else storage.join(folder, name)
        text = row[caption] if caption else None
        extra = {key: value for key, value in row.items() if key not in (path, caption)}
        extra |= {caption: text} if caption and isinstance(text, list) else {}
        return Pair(name, picture, caption=text_of(text), extra=extra)


def rows_of(url: str) -> Iterator[Mapping[str, Any]]:
    """The rows of one table, read as they are asked for.

    Raises:
        UserError: not a readable table of the kind that its ending says.
    """
    fs, path = storage.filesystem(url)
    try:
        with fs.open(path, "rb", compression="gzip" if url.lower().endswith(".gz") else None) as file:
            yield from _rows(file, _ending(url))
    except (ValueError, OSError, EOFError, csv.Error) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"{url}: not a readable .{_ending(url)} file: {' '.join(str(error).split())}") from None


def _rows(file: IO[bytes], ending: str) -> Iterable[Mapping[str, Any]]:
    if ending == "parquet":
        from pyarrow import parquet

        table = parquet.ParquetFile(file)
        plain = [field.name for field in table.schema_arrow if not holds_bytes(field.type)]
        batches = table.iter_batches(ROWS_AT_ONCE, columns=plain)
        return (row for batch in batches for row in batch.to_pylist())
    lines = io.TextIOWrapper(file, "utf-8-sig", newline="")
    if ending == "jsonl":
        return (json.loads(line) for line in lines if line.strip())
    if ending == "txt":
        return ({"url": line.strip()} for line in lines if line.strip())
    return csv.DictReader(lines, delimiter="\t" if ending == "tsv" else ",")


def _ending(url: str) -> str:
    return url.lower().removesuffix(".gz").rpartition(".")[2]


def _column(url: str, row: Mapping[str, Any], wanted: str | None, usual: tuple[str, ...]) -> str:
    """The name of the column to take."""
    if wanted is not None:
        if wanted not in row:
            raise UserError(f"{url}: {no_column(wanted, row)}")
        return wanted
    found = first_of(usual, row)
    if found is None:
        option = "--picture-column" if usual is PATH_COLUMNS else "--caption-column"
        names = [str(name) for name in row]
        near = next((name for name in names if difflib.get_close_matches(name.lower(), usual, n=1)), None)
        remedy = f"{option} {near}?" if near else f"{option} and one of {', '.join(names)}"
        raise UserError(f"{url}: no column named {', '.join(usual[:-1])} or {usual[-1]}; name it with {remedy}")
    return found

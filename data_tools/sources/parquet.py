"""Parquet files with the pictures inside, as the Hugging Face Hub holds datasets and img2dataset can write them.

The pictures are not read while pairs are listed: a pair names the cell in which its picture lies. Called by
`open_source`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import parquet

from data_tools.sources.cells import close_files, open_parquet, read_cell
from data_tools.sources.pair import CAPTION_COLUMNS, Cell, Pair, Source, ending_of, first_of, no_column, text_of
from pipeline.config import UserError

BYTES_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "img_bytes", "bytes")
"""Names by which a column of plain bytes is taken for one of pictures."""
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ParquetSource(Source):
    """The rows of Parquet files one after the other; further columns of bytes are left out."""

    urls: tuple[str, ...]
    picture_column: str
    caption_column: str | None = None
    """None: the first of `CAPTION_COLUMNS`."""

    def pairs(self) -> Iterator[Pair]:
        """In order of files and rows.

        Raises:
            UserError: no such columns, or a broken file.
        """
        close_files()
        for url in self.urls:
            with _told(url):
                yield from self._pairs_of(url, open_parquet(url))

    def _pairs_of(self, url: str, file: parquet.ParquetFile) -> Iterator[Pair]:
        leaf, path, caption, plain = self._columns(url, file.schema_arrow)
        start, number = f"{url.rpartition('/')[2]}/", 0
        ending = _ending(url, leaf)
        for group in range(file.num_row_groups):
            num_bytes, place = _num_bytes(file, group, leaf), 0
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[*plain, *path]):
                for row in batch.to_pylist():
                    own = (row.pop(self.picture_column, None) or {}).get("path")
                    text = row[caption] if isinstance(row[caption], list) else row.pop(caption)
                    yield Pair(
                        own or f"{start}{number}.{ending}", url, cell=Cell(leaf, group, place),
                        caption=text_of(text).strip(), num_bytes=num_bytes, extra=row,
                    )  # fmt: skip
                    place, number = place + 1, number + 1

    def _columns(self, url: str, schema: pa.Schema) -> tuple[str, list[str], str, list[str]]:
        """The leaf with the pictures, that with their paths, the captions' column, and all columns without bytes."""
        if self.picture_column not in schema.names:
            raise UserError(f"{url}: {no_column(self.picture_column, schema.names)}")
        plain = [field.name for field in schema if not holds_bytes(field.type)]
        caption = self.caption_column or first_of(CAPTION_COLUMNS, plain)
        if caption not in plain:
            raise UserError(f"{url}: {no_column(caption or 'caption', plain)}; name the captions with --caption-column")
        assert caption is not None
        if holds_pictures(schema.field(self.picture_column).type):
            return f"{self.picture_column}.bytes", [f"{self.picture_column}.path"], caption, plain
        return self.picture_column, [], caption, plain


def picture_column_of(url: str, wanted: str | None) -> str | None:
    """The column of a Parquet file that holds pictures, `wanted` or the likeliest; None: their paths, if anything.

    Raises:
        UserError: not a Parquet file, or no column `wanted`.
    """
    with _told(url):
        schema = open_parquet(url).schema_arrow
    structs = [field.name for field in schema if holds_pictures(field.type)]
    plain = [field.name for field in schema if _is_bytes(field.type)]
    if wanted is None:
        return next(iter(structs), None) or first_of(BYTES_COLUMNS, plain)
    if wanted not in schema.names:
        raise UserError(f"{url}: {no_column(wanted, schema.names)}")
    return wanted if wanted in structs + plain else None


def holds_pictures(kind: pa.DataType) -> bool:
    """`datasets.Image` is stored as a struct of bytes and path."""
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def holds_bytes(kind: pa.DataType) -> bool:
    """True for a column of bytes, and for one of structs or lists with bytes inside."""
    if pa.types.is_struct(kind):
        return any(holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Trouble with the file is the user's to mend."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{url}: not a readable .parquet file: {' '.join(str(error).split())}") from None


def _ending(url: str, leaf: str) -> str:
    """Of the first picture of a file: it names all that have no path."""
    try:
        return ending_of(read_cell(url, Cell(leaf, 0, 0)))
    except (OSError, StopIteration):
        return "bin"


def _num_bytes(file: parquet.ParquetFile, group: int, leaf: str) -> int:
    """Of the column `leaf` in this group, as stored."""
    stored = file.metadata.row_group(group)
    columns = [stored.column(number) for number in range(stored.num_columns)]
    return sum(int(column.total_compressed_size) for column in columns if column.path_in_schema == leaf)

"""Pictures in the cells of Parquet files, read a row group at a time from front to back. One thread alone may ask.

Called by `data_tools.fetch` in the shard writers, and by the source of such files.
"""

from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
from pyarrow import parquet

from data_tools.sources.pair import Cell
from pipeline import storage

CELLS_AT_ONCE = 16
READ_BYTES = 1 << 20
"""Of one read from the file, so that a row group need not fit into memory."""


def open_parquet(url: str) -> parquet.ParquetFile:
    """A local or remote file.

    Raises:
        pa.ArrowException, OSError: not readable, or of another format.
    """
    fs, path = storage.filesystem(url)
    return parquet.ParquetFile(fs.open(path, "rb"), buffer_size=READ_BYTES)


def read_cell(url: str, cell: Cell) -> bytes:
    """The bytes in a cell; cells are asked for in rising order, or else the group is read again.

    Raises:
        OSError: not readable, or nothing in the cell.
    """
    try:
        data = _group(url, cell.column, cell.group).read(cell.row)
    except (pa.ArrowException, OSError) as error:
        close_files()  # what is left of a broken read is worth nothing
        raise OSError(" ".join(str(error).split())) from None
    if data is None:
        raise OSError("no picture in this row")
    return data


def close_files() -> None:
    """Forget what is open: a file may be written again."""
    _group.cache_clear()
    _file.cache_clear()


class _Group:
    """One column of one row group, read forward."""

    def __init__(self, file: parquet.ParquetFile, column: str, group: int) -> None:
        self._file, self._column, self._group = file, column, group
        self._first = 0
        """Row of the first of `_cells`."""
        self._cells = pa.array([])
        self._rest = self._batches()

    def read(self, row: int) -> bytes | None:
        """The cell of a row; None when it is empty."""
        if row < self._first:
            self._first, self._cells, self._rest = 0, pa.array([]), self._batches()
        while row >= self._first + len(self._cells):
            self._first += len(self._cells)
            self._cells = next(self._rest).column(0)
        found = self._cells[row - self._first].as_py()
        return found["bytes"] if isinstance(found, dict) else found

    def _batches(self) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(CELLS_AT_ONCE, row_groups=[self._group], columns=[self._column])


@lru_cache(maxsize=1)
def _file(url: str) -> parquet.ParquetFile:
    """Open until another is asked for: its footer may be long."""
    return open_parquet(url)


@lru_cache(maxsize=1)
def _group(url: str, column: str, group: int) -> _Group:
    return _Group(_file(url), column, group)

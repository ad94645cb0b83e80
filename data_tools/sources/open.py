"""Which kind of input a path or URL is. To add a kind, write a `Source` and name it here. Called by the sharding."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.sources.arrow import SPLITS_NAME, STATE_NAME, ArrowSource
from data_tools.sources.coco import CocoSource
from data_tools.sources.folder import FolderSource
from data_tools.sources.pair import PICTURE_ENDINGS, Source
from data_tools.sources.parquet import ParquetSource, picture_column_of
from data_tools.sources.table import TABLE_ENDINGS, TableSource
from data_tools.sources.tars import TarSource
from pipeline import storage
from pipeline.config import UserError

FILE_ENDINGS = (*TABLE_ENDINGS, ".json", ".tar")
SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}.*")


def open_source(url: str, picture_column: str | None = None, caption_column: str | None = None) -> Source:
    """The source that fits `url`: a file by its ending, a folder by what lies in it, files by a pattern with `*`.

    Raises:
        UserError: nothing there, a file of no known kind, or a folder that cannot be read.
    """
    fs, path = storage.filesystem(url)
    columns = (picture_column, caption_column)
    if not fs.exists(path):
        return _open_files(url, _matches(url), *columns)
    return _open_folder(url, *columns) if fs.isdir(path) else _open_files(url, [url], *columns)


def _matches(url: str) -> list[str]:
    """The files that fit a pattern, sorted."""
    fs, path = storage.filesystem(url)
    found = sorted(str(name) for name in fs.glob(path)) if "*" in path else []
    if not found:
        is_file = url.lower().removesuffix(".gz").endswith(FILE_ENDINGS)
        raise UserError(f"{url}: no such {'file' if is_file else 'folder'}")
    return found if storage.is_local(url) else [str(fs.unstrip_protocol(name)) for name in found]


def _open_files(url: str, files: Sequence[str], picture_column: str | None, caption_column: str | None) -> Source:
    """Files of one kind, in this order."""

    def all_end_in(*endings: str) -> bool:
        return all(name.lower().removesuffix(".gz").endswith(endings) for name in files)

    if all_end_in(".parquet") and (column := picture_column_of(files[0], picture_column)):
        return ParquetSource(tuple(files), column, caption_column)
    if all_end_in(*TABLE_ENDINGS):
        return TableSource(tuple(files), picture_column, caption_column)
    if all(name.lower().endswith(".tar") for name in files):
        return TarSource(tuple(files))
    if len(files) == 1 and url.lower().endswith(".json"):
        return CocoSource(url)
    raise UserError(f"{url}: not a folder and not one of {', '.join(FILE_ENDINGS)}")


def _open_folder(url: str, *columns: str | None) -> Source:
    """Tars, an Arrow dataset, pictures, or else tables: at the top, or where a folder holds nothing else, below."""
    sizes = _visible_files(url)
    top = sorted(name for name in sizes if "/" not in name)
    if STATE_NAME in top or SPLITS_NAME in top:
        return ArrowSource(url, *columns)
    if tars := [name for name in top if name.endswith(".tar")]:
        return TarSource(tuple(storage.join(url, name) for name in tars))
    if any(name.lower().endswith(PICTURE_ENDINGS) for name in sizes):
        return FolderSource(url, sizes)
    tables = [name for name in sorted(sizes) if name.lower().removesuffix(".gz").endswith(TABLE_ENDINGS[:-1])]
    tables = [name for name in tables if name in top] or tables
    _refuse_several_splits(url, tables)
    files = [storage.join(url, name) for name in tables]
    return _open_files(url, files, *columns) if files else FolderSource(url, sizes)


def _refuse_several_splits(url: str, tables: Sequence[str]) -> None:
    """The Hub's names, `data/train-00000-of-00009.parquet`, tell training data from the rest."""
    splits = sorted({match[1] for name in tables if (match := SPLIT.fullmatch(name))})
    if len(splits) > 1:
        given = f"'{storage.join(url, splits[0])}-*'"
        raise UserError(f"{url}: holds the splits {', '.join(splits)}; give one, as {given}")


def _visible_files(url: str) -> dict[str, int]:
    """Bytes of every file of the tree that is not hidden; a folder that cannot be read is an error, not a gap."""
    if storage.is_local(url):
        try:
            sizes = dict(_local_files(storage.local_path(url)))
        except OSError as error:
            raise UserError(f"{url}: cannot be read whole: {error}") from None
    else:
        fs, root = storage.filesystem(url)
        root = root.rstrip("/")
        sizes = {path[len(root) + 1 :]: info["size"] for path, info in fs.find(root, detail=True).items()}
    return {name: size for name, size in sizes.items() if not any(part.startswith(".") for part in name.split("/"))}


def _local_files(root: Path) -> Iterator[tuple[str, int]]:
    """(path below `root`, bytes) of every file; fsspec would pass over the folders that it may not read."""

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(root, onerror=fail, followlinks=True):
        place = Path(folder)
        for name in names:
            file = place / name
            yield str(file.relative_to(root)), file.stat().st_size if file.exists() else 0  # 0: a link to nowhere

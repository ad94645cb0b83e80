"""Which kind of input a path or URL is. To add a kind, write a `Source` and name it here. Called by the sharding."""

import os
from collections.abc import Iterator
from pathlib import Path

from data_tools.sources.arrow import SPLITS_NAME, STATE_NAME, ArrowSource
from data_tools.sources.coco import CocoSource
from data_tools.sources.folder import FolderSource
from data_tools.sources.pair import PICTURE_ENDINGS, Source
from data_tools.sources.table import TABLE_ENDINGS, TableSource
from data_tools.sources.tars import TarSource
from pipeline import storage
from pipeline.config import UserError

FILE_ENDINGS = (*TABLE_ENDINGS, ".json", ".tar")


def open_source(url: str, picture_column: str | None = None, caption_column: str | None = None) -> Source:
    """The source that fits `url`: a file by its ending, a folder by what lies in it.

    Raises:
        UserError: nothing there, a file of no known kind, or a folder that cannot be read.
    """
    fs, path = storage.filesystem(url)
    columns = (picture_column, caption_column)
    plain = url.lower().removesuffix(".gz")
    if not fs.exists(path):
        raise UserError(f"{url}: no such {'file' if plain.endswith(FILE_ENDINGS) else 'folder'}")
    if fs.isdir(path):
        return _open_folder(url, *columns)
    if plain.endswith(TABLE_ENDINGS):
        return TableSource((url,), *columns)
    if url.lower().endswith(".tar"):
        return TarSource((url,))
    if url.lower().endswith(".json"):
        return CocoSource(url)
    raise UserError(f"{url}: not a folder and not one of {', '.join(FILE_ENDINGS)}")


def _open_folder(url: str, picture_column: str | None, caption_column: str | None) -> Source:
    """Tars, an Arrow dataset, pictures, or else tables."""
    sizes = _visible_files(url)
    top = sorted(name for name in sizes if "/" not in name)
    if STATE_NAME in top or SPLITS_NAME in top:
        return ArrowSource(url, picture_column, caption_column)
    if tars := [name for name in top if name.endswith(".tar")]:
        return TarSource(tuple(storage.join(url, name) for name in tars))
    tables = [name for name in top if name.lower().removesuffix(".gz").endswith(TABLE_ENDINGS[:-1])]
    if tables and not any(name.lower().endswith(PICTURE_ENDINGS) for name in sizes):
        return TableSource(tuple(storage.join(url, name) for name in tables), picture_column, caption_column)
    return FolderSource(url, sizes)


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

"""Bytes at rest: local paths and fsspec URLs behind one small face, and writes that are whole or absent.

A local write goes to a temporary name, is fsynced and renamed. What goes to an object store is gathered first, in
memory or in a temporary file, and put there in one piece, again and again if need be: a store shows an object only when
it is complete. Called by the shard tools, the loader, the checkpoints and the exports.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from pipeline.config import UserError
from pipeline.retry import patiently

NUM_CONNECTIONS = 64
"""Requests to S3 under way at once; botocore's own limit of ten would hold back `data.num_fetch_threads`."""


def is_local(url: str | Path) -> bool:
    """True for a plain path or a file:// URL."""
    return "://" not in str(url) or str(url).startswith("file://")


def local_path(url: str | Path) -> Path:
    """The path of a local URL."""
    return Path(str(url).removeprefix("file://"))


def join(url: str | Path, *names: str) -> str:
    """`url/name/...` for paths and URLs alike."""
    return "/".join([str(url).rstrip("/"), *names])


def filesystem(url: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path inside it.

    Raises:
        UserError: unknown protocol, or a protocol whose package is not installed.
    """
    options: dict[str, Any] = {}
    if str(url).startswith(("s3://", "s3a://")):
        told = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options = {"config_kwargs": {"max_pool_connections": NUM_CONNECTIONS} | told}
    try:
        fs, path = url_to_fs(str(url), **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: {error}") from None
    return fs, str(path)


def exists(url: str | Path) -> bool:
    """True when an object or folder of that name is there."""
    fs, path = filesystem(url)
    with _told(url):
        fs.invalidate_cache()  # another process may have written there since the last look
        return bool(fs.exists(path))


def list_names(url: str | Path) -> list[str]:
    """The names (last components) directly inside a folder, sorted; empty when it is not there."""
    if not exists(url):
        return []
    fs, path = filesystem(url)
    with _told(url):
        return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))


def read_bytes(url: str | Path) -> bytes:
    """The whole object.

    Raises:
        OSError: it is not there, or the storage failed.
        UserError: the storage cannot be asked at all, as without credentials or with a wrong endpoint.
    """
    fs, path = filesystem(url)
    whole = {"max_concurrency": 1} if "s3" in fs.protocol else {}  # one GET: by default it asks for the size first
    with _told(url):
        return bytes(fs.cat_file(path, **whole))


def read_json(url: str | Path) -> Any:
    """The object parsed as JSON."""
    return json.loads(read_bytes(url))


def remove(url: str | Path) -> None:
    """Remove an object or file; what is not there is no error."""
    fs, path = filesystem(url)
    with _told(url), suppress(FileNotFoundError):
        fs.rm_file(path)


@contextmanager
def writing(url: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only if the block ends without an exception: whole, and fsynced.

    Raises:
        OSError: no room, or the storage failed after all attempts.
        UserError: the storage cannot be asked at all, or refuses.
    """
    if not is_local(url):
        with tempfile.NamedTemporaryFile(prefix="tessera-upload-") as file:
            yield file
            file.flush()
            fs, path = filesystem(url)
            with _told(url):
                patiently(lambda: fs.put_file(file.name, path))
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync_directory(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def upload(path: Path, url: str | Path) -> None:
    """Copy a local file to `url`, whole or not at all; raises as `writing`."""
    if is_local(url):
        with writing(url) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        return
    fs, place = filesystem(url)
    with _told(url):
        patiently(lambda: fs.put_file(str(path), place))


def download(url: str | Path, path: Path) -> None:
    """Copy the object to a local file and fsync it.

    Raises:
        OSError, UserError: as `read_bytes`.
    """
    fs, place = filesystem(url)
    with _told(url):
        patiently(lambda: fs.get_file(place, str(path)))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_bytes(url: str | Path, data: bytes) -> None:
    """Write `data` whole or not at all; raises as `writing`."""
    if is_local(url):
        with writing(url) as file:
            file.write(data)
        return
    fs, path = filesystem(url)
    with _told(url):
        patiently(lambda: fs.pipe_file(path, data))


def write_json(url: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_bytes(url, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@contextmanager
def _told(url: str | Path) -> Iterator[None]:
    """A store that refuses, or whose client raises errors of its own, is a mistake of the user's and is named."""
    try:
        yield
    except PermissionError as error:
        if is_local(url):
            raise
        raise UserError(f"{url}: refused: {error}; check credentials and rights of the storage") from None
    except (OSError, UserError):
        raise
    except Exception as error:  # each object store's client has error classes of its own
        raise UserError(f"{url}: {error}; check credentials and endpoint of the storage") from error


def sync_directory(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path | str) -> str:
    """sha256 hex digest of a local file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

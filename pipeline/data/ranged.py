"""Byte ranges of files and objects, each of which has to stay what it was when its first byte was read.

A range of another state of an object would be silent wrong data, so a file's size and time, and an S3 object's ETag (as
`If-Match`, compared by the store itself) are held against the first read. Failures are tried again, `NUM_ATTEMPTS`
times (`pipeline.retry`), each at most `ATTEMPT_SECONDS` long: a store in trouble stops the run after 9 minutes at most.
Called by the source of blocks and by the tools.
"""

import os
from typing import Any

from fsspec.asyn import sync

from pipeline import storage
from pipeline.config import UserError
from pipeline.retry import NUM_ATTEMPTS, patiently

ATTEMPT_SECONDS = 60.0
"""A read that has not come after this long is given up and asked for again."""


class RangedReader:
    """Reads ranges from several threads; one for each run, since it remembers what it saw."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        """URL -> what its content is known by: written once by whoever reads first, compared by all others."""
        self.num_bytes = 0
        """Bytes that were fetched (not exact to the last read, as several threads add to it)."""

    def read(self, url: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file or object at `url`.

        Raises:
            UserError: it is gone, shorter than its index says, or has changed since the first read.
            OSError: the store failed again and again (or what its client raises then).
        """
        try:
            data = self._local(url, start, stop) if storage.is_local(url) else self._remote(url, start, stop)
        except FileNotFoundError:
            raise UserError(f"{url}: not found, though the manifest names it; copy it there, or index again") from None
        if len(data) != stop - start:
            raise _too_short(url, stop)
        self.num_bytes += len(data)
        return data

    def _local(self, url: str, start: int, stop: int) -> bytes:
        """Positioned reads; a file system may give less than asked, and zero bytes at the end."""
        with storage.local_path(url).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            self._compare(url, f"{status.st_size} bytes of {status.st_mtime_ns}")
            parts, offset = [], start
            while part := os.pread(file.fileno(), stop - offset, offset):
                parts.append(part)
                offset += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def _remote(self, url: str, start: int, stop: int) -> bytes:
        """One ranged GET, tried again when it fails or falls short."""
        fs, path = storage.filesystem(url)

        def get() -> bytes:
            if "s3" in fs.protocol:
                data, tag = sync(
                    fs.loop, _get_s3, fs, path, start, stop, self._states.get(url), timeout=ATTEMPT_SECONDS
                )
                self._compare(url, tag)
            else:
                data = bytes(fs.cat_file(path, start=start, end=stop))
            if len(data) != stop - start:
                raise OSError(f"{url}: {len(data)} bytes instead of {stop - start}")
            return data

        try:
            return patiently(get)
        except (UserError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each client library has its own
            raise OSError(f"{url}: the store failed {NUM_ATTEMPTS} times, the last time with {error!r}") from error

    def _compare(self, url: str, state: str) -> None:
        if (known := self._states.setdefault(url, state)) != state:
            raise _changed(url, known)


async def _get_s3(fs: Any, path: str, start: int, stop: int, tag: str | None) -> tuple[bytes, str]:
    """(bytes, ETag) of a range of an object that must still have `tag`, as far as that is known.

    The client is asked directly, since fsspec's own read has no condition.
    """
    bucket, key, _ = fs.split_path(path)
    await fs.set_session()
    client = await fs.get_s3(bucket)
    condition = {} if tag is None else {"IfMatch": tag}
    span = f"bytes={start}-{stop - 1}"
    try:
        answer = await client.get_object(Bucket=bucket, Key=key, Range=span, **condition, **fs.req_kw)
    except Exception as error:  # botocore's class is not imported here; what the store answered has a `response`
        raise _told(error, f"s3://{path}", stop, tag) from None
    if stop > int(answer["ContentRange"].rpartition("/")[2]):
        raise _too_short(f"s3://{path}", stop)
    async with answer["Body"] as body:
        return await body.read(), answer["ETag"]


def _told(error: Exception, url: str, stop: int, tag: str | None) -> Exception:
    """An answer of the store's as the error that it means; any other error as it is."""
    from s3fs.errors import translate_boto_error

    code = getattr(error, "response", {}).get("Error", {}).get("Code")
    if code in ("PreconditionFailed", "412"):
        return _changed(url, str(tag))
    if code in ("InvalidRange", "416"):
        return _too_short(url, stop)
    return translate_boto_error(error)


def _changed(url: str, known: str) -> UserError:
    return UserError(
        f"{url}: changed while it was being read (it was {known}); put the old object back, or begin a new run on the"
        " new data after `tessera-data index`"
    )


def _too_short(url: str, stop: int) -> UserError:
    return UserError(f"{url}: ends before byte {stop}; the tar is cut off or its index stale, index again")

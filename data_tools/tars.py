"""Whole tars at rest, as buffers. Called by `validate`, `index` and `report`, in worker processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap

from pipeline import storage
from pipeline.data.tar import Buffer, TarSample, iter_members, split_name

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
"""Extensions of members that are pictures."""


@contextmanager
def opened(url: str) -> Iterator[Buffer]:
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


def sample_keys(buffer: Buffer) -> list[str]:
    """The keys of all samples in order, one for each run of adjacent members; headers only.

    Raises:
        TarError: the tar is broken.
    """
    keys: list[str] = []
    for member in iter_members(buffer):
        parts = split_name(member.name)
        if parts is not None and (not keys or parts[0] != keys[-1]):
            keys.append(parts[0])
    return keys


def picture_of(sample: TarSample) -> bytes | None:
    """The bytes of the picture in a sample; None when it has none."""
    return next((sample.members[extension] for extension in PICTURES if extension in sample.members), None)

"""Small datasets for the tests of the loader: noise pictures whose first pixels spell their number."""

import hashlib
import io

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.shards import Manifest, ShardRecord, index_name, shard_name, write_index
from pipeline.data.tar import TarSample, write_samples


def picture(number, size=(8, 8), format="PNG"):
    """An encoded picture; pixel (0, 0) is (number // 256, number % 256, 7)."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = (number // 256, number % 256, 7)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def samples(count, first=0, size=(8, 8)):
    return [
        TarSample(f"{n:05d}", {"png": picture(n, size), "txt": f"caption {n}".encode(), "json": b"{}"})
        for n in range(first, first + count)
    ]


def write_dataset(url, shards, **fields):
    """Write lists of TarSample as shards 00000.tar, ... with indexes and a manifest; returns the manifest."""
    records = []
    for number, content in enumerate(shards):
        name, file = shard_name(number), io.BytesIO()
        offsets = write_samples(file, content)
        data = file.getvalue()
        storage.write_bytes(storage.join(url, name), data)
        write_index(storage.join(url, index_name(name)), offsets)
        records.append(ShardRecord(name, len(content), len(data), hashlib.sha256(data).hexdigest()))
    manifest = Manifest(**{"kind": "images", "shards": tuple(records), **fields})
    manifest.save(str(url))
    return manifest


def write_pictures(url, counts, size=(8, 8)):
    """A dataset of shards with `counts` samples, numbered through."""
    firsts = np.cumsum([0, *counts])
    return write_dataset(url, [samples(count, int(first), size) for count, first in zip(counts, firsts, strict=False)])


def numbers(batch):
    """The numbers that the pictures of a batch spell."""
    pixels = batch.images[:, :, 0, 0].int()
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()

"""Pictures that look alike: a 64-bit hash of each, and the first of every group whose hashes are close.

The hash is the signs of the 64 lowest frequencies of a 32 x 32 grey picture's cosine transform against their median
(C. Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). Called by `data_tools.mask`.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from data_tools.pool import map_unordered
from data_tools.tars import opened, picture_of, sample_spans
from pipeline import storage
from pipeline.data.decode import DecodeError, decode_image
from pipeline.data.shards import Manifest
from pipeline.data.tar import parse_samples

SIDE, LOW = 32, 8
BITS = LOW * LOW


@dataclass(frozen=True)
class HashTask:
    """One shard."""

    url: str
    number: int
    name: str


def perceptual_hashes(url: str, manifest: Manifest, num_workers: int) -> np.ndarray:
    """uint64 [N]: the hash of every picture; what does not decode gets 0."""
    tasks = [HashTask(url, number, shard.name) for number, shard in enumerate(manifest.shards)]
    found = dict(map_unordered(hash_shard, tasks, len(tasks), num_workers, f"comparing pictures of {url}"))
    return np.concatenate([found[number] for number in range(len(tasks))])


def hash_shard(task: HashTask) -> tuple[int, np.ndarray]:
    """The number of a shard and its hashes, uint64 [n]."""
    with opened(storage.join(task.url, task.name)) as buffer:
        spans = list(sample_spans(buffer))
        samples = (parse_samples(buffer[slice(*span.span)])[0] for span in spans)
        return task.number, np.array([_hash(picture_of(sample) or b"") for sample in samples], dtype=np.uint64)


def _hash(data: bytes) -> int:
    try:
        image = decode_image(data, SIDE)
    except DecodeError:
        return 0
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:LOW, :LOW].ravel()
    bits = low > np.median(low[1:])  # the first is the mean, which says nothing about the look
    return int(np.packbits(bits).view(">u8")[0])


def far_apart(hashes: np.ndarray, candidates: np.ndarray, max_bits: int) -> np.ndarray:
    """bool [N]: candidates that differ in more than `max_bits` bits from every one that was taken before them.

    Two words that differ in at most d bits agree in one of d + 1 pieces: only words with an equal piece are compared.
    """
    taken = np.zeros(len(hashes), dtype=bool)
    edges = np.linspace(0, BITS, max_bits + 2).astype(int)
    buckets: list[dict[int, list[int]]] = [{} for _ in range(max_bits + 1)]
    words = hashes.tolist()
    for place in np.flatnonzero(candidates).tolist():
        word = words[place]
        pieces = [(word >> int(a)) & ((1 << int(b - a)) - 1) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        rows = zip(buckets, pieces, strict=True)
        if any((word ^ other).bit_count() <= max_bits for bucket, piece in rows for other in bucket.get(piece, ())):
            continue
        taken[place] = True
        for bucket, piece in zip(buckets, pieces, strict=True):
            bucket.setdefault(piece, []).append(word)
    return taken

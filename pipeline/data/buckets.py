"""Aspect-ratio buckets: pictures of like shape share their batches, and every batch is of one shape.

`tessera-data buckets` writes beside the shards which shape each picture is cut to, one byte a sample. The loader makes
one axis of each bucket, and this interleave gives every global batch to one of them: of the batches of an epoch each
bucket has as many as its samples fill, spread evenly; what does not fill a batch is carried into the next epoch.
Nothing is dropped or repeated, no state is kept, all ranks make the same steps. Called by the dataset and the plan.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.order import BUCKET_KEYS, mix, round_keys
from pipeline.data.shards import Manifest

BYTES_NAME, BUCKETS_NAME = "buckets.bin", "buckets.json"
SCHEMA_VERSION = 1

Shape = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Buckets:
    """The shape that each sample of a dataset is cut to."""

    manifest_digest: str
    """Of the manifest that they were made for."""
    shapes: tuple[Shape, ...]
    """One for each bucket."""
    numbers: np.ndarray
    """uint8 [N]: each sample's bucket."""

    @property
    def digest(self) -> str:
        """sha256 hex digest of the manifest, the shapes and the numbers."""
        return hashlib.sha256(f"{self.manifest_digest} {self.shapes}".encode() + self.numbers.tobytes()).hexdigest()

    def shape_of(self, sample_id: int) -> Shape:
        """What a sample is cut to."""
        return self.shapes[self.numbers[sample_id]]

    def save(self, url: str) -> None:
        """Write both files into the dataset folder; the JSON comes last and makes the bytes count."""
        data = self.numbers.tobytes()
        head = _Head(self.manifest_digest, [list(shape) for shape in self.shapes], hashlib.sha256(data).hexdigest())
        storage.write_bytes(storage.join(url, BYTES_NAME), data)
        storage.write_json(storage.join(url, BUCKETS_NAME), asdict(head))


@dataclass(frozen=True)
class _Head:
    """What `buckets.json` says."""

    manifest_digest: str
    shapes: list[list[int]]
    sha256: str
    schema_version: int = SCHEMA_VERSION


def load_buckets(url: str, manifest: Manifest) -> Buckets:
    """The buckets beside a dataset.

    Raises:
        UserError: there are none, they were made for another manifest, or they are damaged.
    """
    place, remedy = storage.join(url, BUCKETS_NAME), f"make them with `tessera-data buckets {url}`"
    try:
        head = _Head(**storage.read_json(place))
        if head.schema_version != SCHEMA_VERSION:
            raise ValueError(head.schema_version)
        data = storage.read_bytes(storage.join(url, BYTES_NAME))
    except FileNotFoundError:
        raise UserError(f"{place}: not found; {remedy}, or set data.aspect_buckets to false") from None
    except (ValueError, TypeError):
        raise UserError(f"{place}: not the buckets of this version; {remedy}") from None
    if head.manifest_digest != manifest.digest:
        raise UserError(f"{place}: made for another state of this dataset; {remedy}")
    if hashlib.sha256(data).hexdigest() != head.sha256:
        raise UserError(f"{place}: {BYTES_NAME} holds other bytes than it says; {remedy}")
    shapes = tuple((height, width) for height, width in head.shapes)
    return Buckets(head.manifest_digest, shapes, np.frombuffer(data, np.uint8))


def shapes_near(side: int, multiple: int, max_aspect: float) -> tuple[Shape, ...]:
    """Shapes of at most `side` squared pixels with sides that are multiples, from tall to wide; one for each width."""
    widths = range(multiple, int(side * max_aspect**0.5) + 1, multiple)
    found = [(side * side // width // multiple * multiple, width) for width in widths]
    return tuple((h, w) for h, w in found if h and max(h, w) <= max_aspect * min(h, w))


def nearest_shapes(heights: np.ndarray, widths: np.ndarray, shapes: tuple[Shape, ...]) -> np.ndarray:
    """uint8 [N]: for each picture the shape whose aspect ratio is nearest to its own, by the quotient of the two."""
    logs = np.log([w / h for h, w in shapes])
    return np.abs(np.log(widths / heights)[:, None] - logs).argmin(axis=1).astype(np.uint8)


@dataclass(frozen=True)
class BatchesOfBuckets:
    """See `plan.Interleave`; equal fields give the equal order everywhere."""

    counts: tuple[int, ...]
    """Samples of each bucket."""
    batch_size: int
    seed: int

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bucket, position on the bucket's own axis), int64 [n] both."""
        steps, inside = np.divmod(positions, self.batch_size)
        known, back = np.unique(steps, return_inverse=True)
        batches = np.array([self.batch(step) for step in known.tolist()], dtype=np.int64).reshape(-1, 2)[back]
        return batches[:, 0], batches[:, 1] * self.batch_size + inside

    def batch(self, step: int) -> tuple[int, int]:
        """(bucket, number of the batch among those of that bucket) of one global batch."""
        epoch = step * self.batch_size // sum(self.counts)
        while self._num_begun(epoch + 1).sum() <= step:
            epoch += 1
        begun = self._num_begun(epoch)
        bucket, number = _row_of_epoch(tuple((self._num_begun(epoch + 1) - begun).tolist()), self.seed, epoch)
        place = step - int(begun.sum())
        return int(bucket[place]), int(begun[bucket[place]] + number[place])

    def _num_begun(self, epoch: int) -> np.ndarray:
        """Whole batches of each bucket in the first `epoch` epochs, int64 [buckets]."""
        return np.array([count * epoch // self.batch_size for count in self.counts], dtype=np.int64)


@lru_cache(maxsize=4)
def _row_of_epoch(num_batches: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, number of its batch) of each step of an epoch: int64 of 16 bytes a step together.

    Each bucket spreads its batches evenly over the epoch, each at a keyed moment of its own stretch, in order: so its
    lanes go forward, and no block is fetched again.
    """
    buckets = np.repeat(np.arange(len(num_batches)), num_batches)
    numbers = np.concatenate([np.arange(count) for count in num_batches])
    key = round_keys(seed, epoch, BUCKET_KEYS)[0]
    moments = (mix(mix(buckets.astype(np.uint64) + key) + numbers.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53
    row = np.argsort((numbers + moments) / np.array(num_batches)[buckets], kind="stable")
    return buckets[row], numbers[row]

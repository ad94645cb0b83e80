"""Aspect-ratio buckets: pictures of like shape share their batches, and every batch is of one shape.

`tessera-data buckets` writes beside the shards which shape each picture is cut to, one byte a sample. The loader makes
one axis of each bucket, and this interleave gives every global batch to one of them: of the batches of an epoch each
bucket has as many as it has samples, to within one, in a keyed order; what does not fill a batch is carried into the
next epoch. Nothing is dropped or repeated, no state is kept, all ranks make the same steps. Called by the dataset and
the plan.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.order import BUCKET_KEYS, permute, round_keys
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
        while self._begun(epoch + 1).sum() <= step:
            epoch += 1
        begun = self._begun(epoch)
        num_batches = self._begun(epoch + 1) - begun
        place, keys = np.array([step - begun.sum()], dtype=np.uint64), round_keys(self.seed, epoch, BUCKET_KEYS)
        drawn = int(permute(place, int(num_batches.sum()), keys)[0])
        bucket = int(np.searchsorted(np.cumsum(num_batches), drawn, side="right"))
        return bucket, int(begun[bucket] + drawn - num_batches[:bucket].sum())

    def _begun(self, epoch: int) -> np.ndarray:
        """Whole batches of each bucket in the first `epoch` epochs, int64 [buckets]."""
        return np.array([count * epoch // self.batch_size for count in self.counts], dtype=np.int64)

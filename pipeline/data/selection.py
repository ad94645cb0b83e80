"""Which samples of a dataset count: one bit each, in a file beside the shards that nothing else has to know about.

Written by `tessera-data mask`, applied by the loader as it opens a dataset. A selection belongs to one manifest; with
it the dataset has another digest, so that a run does not go on with other samples than it began with.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.config import UserError
from pipeline.data.members import Members, pack
from pipeline.data.shards import Manifest

BITS_NAME, SELECTION_NAME = "selection.bits", "selection.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Selection:
    """The samples that count, and why the others do not."""

    manifest_digest: str
    """Of the manifest that it was made for."""
    num_samples: int
    """N, of the manifest."""
    bits: np.ndarray
    """uint8 [ceil(N / 8)], as `members.pack` makes them, in the order of the manifest."""
    removed: dict[str, int]
    """Rule -> samples that it removed which no rule before it had."""

    @property
    def digest(self) -> str:
        """sha256 hex digest of manifest and bits: the name of the dataset as it is seen through this selection."""
        return hashlib.sha256(self.manifest_digest.encode() + self.bits.tobytes()).hexdigest()

    @property
    def keep(self) -> np.ndarray:
        """bool [N]: which samples count."""
        return self.kept(0, self.num_samples)

    def kept(self, first: int, last: int) -> np.ndarray:
        """bool [last - first]: which of the samples [first, last) count."""
        bits = np.unpackbits(self.bits[first // 8 : -(-last // 8)], bitorder="little")
        return bits[first % 8 : first % 8 + last - first].astype(bool)

    def members(self) -> Members:
        """The samples that count, by their number."""
        return Members(self.bits)

    def save(self, url: str) -> None:
        """Write both files into the dataset folder; the JSON comes last and makes the bits count."""
        bits = self.bits.tobytes()
        storage.write_bytes(storage.join(url, BITS_NAME), bits)
        head = _Head(
            self.manifest_digest,
            self.num_samples,
            len(self.members()),
            self.removed,
            hashlib.sha256(bits).hexdigest(),
        )
        storage.write_json(storage.join(url, SELECTION_NAME), asdict(head))


def select(manifest: Manifest, keep: np.ndarray, removed: dict[str, int]) -> Selection:
    """The selection of the samples for which `keep`, bool [N], is true."""
    return Selection(manifest.digest, manifest.num_samples, pack(keep), removed)


@dataclass(frozen=True)
class _Head:
    """What `selection.json` says."""

    manifest_digest: str
    num_samples: int
    num_selected: int
    removed: dict[str, int]
    sha256: str
    """Of the bits."""
    schema_version: int = SCHEMA_VERSION


def load_selection(url: str, manifest: Manifest) -> Selection | None:
    """The selection beside a dataset; None when there is none.

    Raises:
        UserError: it was made for another manifest, is damaged, or leaves no sample.
    """
    place = storage.join(url, SELECTION_NAME)
    remedy = "make it again with `tessera-data mask`, or remove it with `tessera-data mask --clear`"
    try:
        tree: dict[str, Any] = storage.read_json(place)
        head = _Head(**tree)
        if head.schema_version != SCHEMA_VERSION:
            raise ValueError(head.schema_version)
        bits = storage.read_bytes(storage.join(url, BITS_NAME))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{place}: not a selection of this version; {remedy}") from None
    if head.manifest_digest != manifest.digest:
        raise UserError(f"{place}: made for another state of this dataset; {remedy}")
    if hashlib.sha256(bits).hexdigest() != head.sha256:
        raise UserError(f"{place}: {BITS_NAME} holds other bits than it says; {remedy}")
    if not head.num_selected:
        raise UserError(f"{place}: leaves no sample; {remedy}")
    return Selection(head.manifest_digest, head.num_samples, np.frombuffer(bits, np.uint8), head.removed)


def selection_digest(url: str, manifest: Manifest) -> str | None:
    """The digest of the selection beside a dataset, for its lineage; None when all samples count.

    Raises:
        UserError: as `load_selection`.
    """
    selection = load_selection(url, manifest)
    return None if selection is None else selection.digest


def remove_selection(url: str) -> None:
    """Let all samples count again."""
    storage.remove(storage.join(url, SELECTION_NAME))
    storage.remove(storage.join(url, BITS_NAME))

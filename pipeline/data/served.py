"""The ledger of served samples: for each step two sums over what it really trained on, equal on any number of ranks.

Each sample that was read and decoded gives one 64-bit word of (epoch, sample id) and one of its key as it stood in the
tar; a step's two words are the sums modulo 2^64, so every rank adds up its share, and the shares travel with the step's
metrics. A chain over all steps lies in every checkpoint, the words themselves in the journal. Kept by the trainer,
proved by `tessera-data verify-epoch`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.data.batch import Batch
from pipeline.data.order import mix

NUM_FLOATS = 4
"""Numbers below 2^32 that carry a step's two words through a float64 collective exactly."""

_EPOCH_SALT = np.uint64(0x9E3779B97F4A7C15)


class ServedJournal(Protocol):
    """Where the words are written down (`pipeline.tracking` Journal)."""

    def served(self, first: int, batch_size: int, ranks: int, words: Sequence[str]) -> None:
        """The steps of `batch_size` samples from `first` on, one word each."""
        ...


def sample_words(epochs: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: one word for each pair of an epoch and a sample id, int64 [n] both."""
    return mix(mix(epochs.astype(np.uint64) + _EPOCH_SALT) + sample_ids.astype(np.uint64))


def key_words(keys: Sequence[str]) -> np.ndarray:
    """uint64 [n]: one word for each key."""
    digests = [hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def step_word(sample_sum: int, key_sum: int) -> str:
    """The two sums as the journal writes them: 32 hexadecimal digits."""
    return f"{sample_sum:016x}{key_sum:016x}"


def chained(chain: str, word: str) -> str:
    """The chain after one more step: 32 hexadecimal digits, from nothing (`""`) on."""
    return hashlib.blake2b((chain + word).encode(), digest_size=16).hexdigest()


def batch_floats(batch: Batch) -> list[float]:
    """A rank's share of a step's words, as `NUM_FLOATS` whole numbers below 2^32."""
    sums = (
        int(sample_words(np.array(batch.epochs, np.int64), np.array(batch.sample_ids, np.int64)).sum(dtype=np.uint64)),
        int(key_words(batch.keys).sum(dtype=np.uint64)),
    )
    return [float(half) for total in sums for half in (total >> 32, total & 0xFFFFFFFF)]


@dataclass
class Page:
    """Steps of one size in a row."""

    first: int
    """Samples seen before the first of them."""
    batch_size: int
    words: list[str]
    """One for each step."""


class Ledger:
    """The words of the steps since the last checkpoint, and the chain over all steps.

    Args:
        chain: of the checkpoint that this attempt goes on from; empty at the beginning.
    """

    def __init__(self, chain: str) -> None:
        self.chain = chain
        self._pages: list[Page] = []

    def add(self, samples_seen: int, batch_size: int, means: Sequence[float], world_size: int) -> None:
        """The step that began at `samples_seen`, from the means over ranks of their `batch_floats`: float64 holds the
        sums exactly."""
        assert len(means) == NUM_FLOATS
        halves = [round(mean * world_size) for mean in means]
        sums = [((high << 32) + low) % 2**64 for high, low in (halves[:2], halves[2:])]
        if not self._pages or self._pages[-1].batch_size != batch_size:
            self._pages.append(Page(samples_seen, batch_size, []))
        self._pages[-1].words.append(step_word(*sums))
        self.chain = chained(self.chain, self._pages[-1].words[-1])

    def write(self, journal: ServedJournal, world_size: int) -> None:
        """Into the journal, just before a checkpoint: what lies between checkpoints is done again after a kill."""
        for page in self._pages:
            journal.served(page.first, page.batch_size, world_size, page.words)
        self._pages = []
